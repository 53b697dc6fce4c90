"""Run files carried out, and the directories that they leave.

**Parts.** `parts.expand` turns a run file with ``[teachers.NAME]`` and chains into plain runs in order, and one run
whose references are directories; `execute` carries each of them out. So a part is a run like any other, and nothing
below `parts` knows of it. A method says with ``chain`` how it uses assistants; it never trains them.

**A run directory** (`directory`) keeps plain values: it knows no model and no method. What resolving options means it
is told.
"""
