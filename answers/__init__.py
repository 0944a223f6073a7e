"""What is kept and sent: from an outcome of Calendar42 to the bytes of a response."""
