"""Learners, and the one loop that trains them.

**A learner** is a model, its optimizer, its own loss and weighted terms. `fit` takes several. In each batch every
learner looks (one forward pass each, which its peers read too, detached), then all losses, all backward passes, all
steps. A method may stand in the place of the model's own loss (``replaces_base``: HetComp), choose its negatives
(``base_batch``: BD), or train its teacher along (``mutual``: BD, whose ``counterpart`` makes the teacher's term and
``Learner.counterparts()`` its learner). The checkpoint holds all learners; those of teachers are saved as runs under
``peers/``.

**Randomness.** Every stream is derived from (seed, names, epoch) by `kdrs.core.sampling.stream`, torch's own generator
included. So a checkpoint at the end of an epoch holds no generator state, and a resumed run gives the same bytes.

**Losses of scores.** A model whose scores are products of two tables' rows (``Recommender.score_tables``: BPR) may
give its loss, and a term its own (``Distiller.score_loss``: BD), as a function of a few scores a row with its gradient
in them. Where the tables are row tables and all that a learner trains, by such losses alone, in float32 on the CPU and
with Adam, a step is two calls of the core (``optim.Adam.scores`` and ``score_step``), and one more for a peer that
asks for scores: small steps are half autograd's fixed costs. Else autograd does it.

**BPR alone** is trained in one call a step (``Learner.step_alone``): product, gradient in closed form, Adam. Rows
outside the batch owe their step until they are read: the bytes are those of dense Adam, the memory traffic is that of
the lazy one.
"""
