"""A student behind HTTP: uvicorn serve:app, with STUDENT naming the file.

GET /users/ID?k=10 for a known user, POST /lists with {"history": [...], "k": 10} for anybody.
"""

import os

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

import kdrs

student = kdrs.Student.load(os.environ.get("STUDENT", "student.safetensors"))
app = FastAPI()


class Asked(BaseModel):
    history: list[str]
    k: int = 10


def answer(ask, **how):
    try:
        found = student.recommend(ask, unknown="popular", threads=1, **how)
    except kdrs.errors.KdrsError as error:
        raise HTTPException(422, str(error)) from error
    (_, items), *_ = found
    return {"items": [{"item": item, "score": score} for item, score in items], "popular": bool(found.popular[0])}


@app.get("/users/{user:path}")  # an id may hold a slash
def known(user: str, k: int = 10):
    return answer([user], k=k)


@app.post("/lists")
def anybody(asked: Asked):
    return answer(None, k=asked.k, histories=[asked.history])
