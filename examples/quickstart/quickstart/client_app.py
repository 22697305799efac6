"""The client: three actions and the error guard, as they come; add your own actions or mods here."""

from pdss_fl.client_app import create_client_app

app = create_client_app()
