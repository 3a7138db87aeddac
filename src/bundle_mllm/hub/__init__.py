"""What comes from the Hub and goes there: converting what others published, and publishing.

It must not know how models are trained.
"""
