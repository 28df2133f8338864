"""From a slide's overview to the windows worth computing."""
