"""The calculator as one static page, its arithmetic translated from the Python that the command runs."""
