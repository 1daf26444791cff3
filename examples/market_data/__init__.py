"""Market data over HTTP, served from the cache while its origin is slow, fails and comes back.

`python -m examples.market_data` tells the story; the README of this folder explains it.
"""
