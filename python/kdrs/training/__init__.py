"""What training is made of: queries and batches, views, losses, optimizers.

**Queries and views.** A recommender is asked `Queries` and answers with a `View`: vectors and scores of one forward
pass, all lazy. ``view.at(queries)`` asks the same forward state for others, so that a graph model propagates once a
step. ``view.pairs(rows, ids)`` scores any pairs, so lists of an item's users need nothing of their own. h(u), h(i) and
scores may come from different vectors: ``DotView(..., represent=...)`` says what ``view.queries`` and ``view.items``
are where the vectors that are multiplied carry noise in training (autoencoders), or where a method reads another layer
(LightGCN).

**Tasks** hold training data only and cut an epoch into batches. ``Task.draw(epoch)`` depends on the epoch alone and
runs ahead in another thread. A model says which task it learns from (``make_task``): pairs, whole users, whole items,
sequences. Batches of whole users or items are flat: ``positives`` [P] and ``negatives`` [N'], with the batch row of
each in ``positive_rows`` and ``negative_rows``, which pair batches answer too. In a batch of items the queries are the
users who have seen any of them.

**Sequences.** Query rows 0 to U-1 are the users asking now, rows U to Q-1 the training instances. ``seen`` stays [U,
I], and ``Task.owners`` int64 [Q] names the user of each row (None where queries are users). Whatever looks a query up
in ``seen`` goes through it. A teacher that was trained on another kind of task is built with both,
``ModelTeacher(model, own_task, asked=task)``; `kdrs.training.sequences.translated` says what it is asked for.
Histories are padded on the left with the id ``n_items``.

**Noise inside a model** that encodes queries lazily (CDAE, Mult-VAE) is a function of the pass's seed and of the entry
it belongs to: one forward state has one noise whatever is read of it, and a term that asks for other users changes
nobody's. Sequential models draw a step's dropout from torch's generator and that of other queries from a stream of the
term that asks. What a graph model drops is drawn once a pass from torch's generator, or once an epoch from a stream of
the model's own.

**Gradients of tables** arrive as touched rows. A table that a step reads row by row is a `kdrs.core.tables.RowTable`.
While its learner is in an epoch, rows may owe steps of `optim.Adam` and take them when they are read: dense Adam
leaves them to the core where a batch touches few rows, and ``lazy`` always. Whatever reads such a table in training
calls it or takes its values from ``read``. Where a model has an ``after_step`` hook, or a parameter is held by other
modules too, its tables do not wait. Dense Adam's other tables, and those off the CPU, go through torch's fused pass
over a buffer whose touched rows alone are cleared. A parameter that stands for several equal ones
(``Distiller.multiplicities``) steps as each of them would.
"""
