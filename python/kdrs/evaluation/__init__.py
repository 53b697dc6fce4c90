"""How good a ranking is: one value a query and metric.

**Scorers** are factors, score blocks or ready lists (`scorers`). The evaluator goes over the queries in blocks; a
`Ledger` collects one part's values in query order, so block sizes and threads change nothing.

**Moments.** A sequential model's task says how far each user's history goes. ``SequenceTask.after(pairs)`` is the same
task one item later. The evaluator asks a scorer for it (objects with ``after``) where a part follows other held-out
items.

No module here imports torch: whoever has factors in NumPy needs none.
"""
