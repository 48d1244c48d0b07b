"""Widgets on Textual's line API: they paint Lines and repaint only what changed."""
