"""The graph viewer: one HTML file that needs no network. Python gathers and orders, the page places and draws."""
