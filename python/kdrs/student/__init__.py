"""A student as one file that serves: lists, neighbours, scores, new users. No torch is imported in here.

- `file`: the safetensors file ``kdrs-student/1``: tables, ids, optionally what users have seen, a card.
- `student`: `Student`, which answers.
- `batches`: `Recommend`, for engines that spread batches of users over processes.
- `answers`: what it answers with.
"""

from kdrs.student.answers import Recommendations
from kdrs.student.student import Student

__all__ = ["Recommendations", "Student"]
