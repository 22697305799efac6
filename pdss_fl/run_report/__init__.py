"""``pdss report``: a finished run as one self-contained page, for the server's side or a client's own."""
