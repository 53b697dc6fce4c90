"""Where knowledge comes from: a trained model, a peer in training, or a file that another library wrote.

A teacher answers ``view``, ``topk`` (whole or block by block), ``top_users``, ``factors``, ``score_block``,
``stages``, ``dim``; ``check_scores``, ``check_lists`` and ``check_users`` refuse early what it does not hold. A
`ModelTeacher` is put into evaluation mode and read without gradient; ``live=True`` is one in training, whose mode is
restored after every read. A teacher is never a submodule of a distiller.
"""
