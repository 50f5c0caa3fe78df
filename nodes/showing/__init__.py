"""A recorded run as a picture and as data for the browser."""
