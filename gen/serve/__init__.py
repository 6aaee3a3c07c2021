"""`fewstep serve`: many clients' pictures from shared forward passes of the network, over HTTP.

`engine.py` and what it imports know nothing of HTTP; `http/` knows nothing of networks.
"""
