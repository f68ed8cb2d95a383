"""Scorers: a text and a target become a verdict. One module per kind of answer; no text makes one raise."""
