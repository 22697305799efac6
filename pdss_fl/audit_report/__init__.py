"""``pdss audit``: what mechanisms promise, held against exact measurement and attacks, on a terminal and a page."""
