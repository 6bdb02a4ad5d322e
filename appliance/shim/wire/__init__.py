"""The API's shapes: what comes in is checked field by field, what goes out is declared once."""
