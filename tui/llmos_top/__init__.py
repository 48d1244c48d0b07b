"""llmos-top: a terminal monitor that paints the Frames a daemon publishes, and acts on requests by their id."""
