"""What every request passes on its way in, one concern a file; app.py has the order."""
