"""HTTP/1.1 on sockets, with a WSGI app behind it. Knows nothing of what is served."""
