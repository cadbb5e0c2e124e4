"""Volumes in, model directories out: fitting, exporting and measuring the shipped networks (extra ``train``).

Nothing outside this room imports torch for training, and nothing here is needed to read or write arrays.
"""
