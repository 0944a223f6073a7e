"""An HTTP/1.1 server for a WSGI app. It doesn't know what it serves."""
