"""The local server that speaks TF Serving's protocols, and the client for any such server.

Knows SavedModels and protocol buffers only, nothing of the zoo.
"""
