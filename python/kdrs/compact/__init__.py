"""Small tables of vectors: fewer directions (`kdrs.compact.reduce`), few bits (`kdrs.Codes`), and users as functions of their
items (`kdrs.compact.encoders`). NumPy alone: what is made here is served without torch.

Shape letters: U users, I items, Q queries, D dimension, P pairs.
"""
