"""The peer of bench/api: tasks in FastAPI and SQLite, as people write it today.

It checks a token, validates the body with pydantic and stores it durably (WAL, synchronous=FULL). No audit, no schedule, no pipeline that is
compiled, no rights over single tasks, no limits.
"""

import json
import os
import sqlite3
import threading
import time
import uuid
from typing import Any, Optional

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

SECRET = os.environ["PEER_SECRET"]
app = FastAPI()
bearer = HTTPBearer()
local = threading.local()


def database():
    """A connection of this thread."""
    if not hasattr(local, "connection"):
        local.connection = sqlite3.connect(os.environ["PEER_DATABASE"], timeout=30, isolation_level=None)
        local.connection.execute("PRAGMA journal_mode = WAL")
        local.connection.execute("PRAGMA synchronous = FULL")
        local.connection.execute("CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, owner TEXT, created REAL, body TEXT)")
        local.connection.execute("CREATE INDEX IF NOT EXISTS by_owner ON tasks (owner, created)")
    return local.connection


class Task(BaseModel):
    title: str = Field(min_length=1, max_length=200)
    description: str = Field(max_length=5000)
    schedule_kind: str
    schedule_expr: Optional[str] = None
    timezone: str = "UTC"
    payload: dict[str, Any]
    created_by: str
    priority: int = Field(5, ge=1, le=9)


def caller(credentials: HTTPAuthorizationCredentials = Depends(bearer)):
    try:
        return jwt.decode(credentials.credentials, SECRET, algorithms=["HS256"])
    except jwt.PyJWTError:
        raise HTTPException(401, "Invalid authentication credentials")


@app.get("/token")
def token():
    return {"access_token": jwt.encode({"sub": "system", "exp": time.time() + 3600}, SECRET, algorithm="HS256")}


def shown(row):
    return dict(json.loads(row[1]), id=row[0])


@app.get("/tasks")
def tasks(limit: int = 50, offset: int = 0, user: dict = Depends(caller)):
    total = database().execute("SELECT count(*) FROM tasks WHERE owner = ?", (user["sub"],)).fetchone()[0]
    rows = database().execute("SELECT id, body FROM tasks WHERE owner = ? ORDER BY created DESC LIMIT ? OFFSET ?", (user["sub"], limit, offset))
    return {"items": [shown(row) for row in rows], "total": total}


@app.get("/tasks/{task}")
def one(task: str, user: dict = Depends(caller)):
    row = database().execute("SELECT id, body FROM tasks WHERE id = ? AND owner = ?", (task, user["sub"])).fetchone()
    if row is None:
        raise HTTPException(404, "Task not found")
    return shown(row)


@app.post("/tasks", status_code=201)
def make(task: Task, user: dict = Depends(caller)):
    number = str(uuid.uuid4())
    body = dict(task.model_dump(), status="active", created_at=time.time())
    database().execute("INSERT INTO tasks VALUES (?, ?, ?, ?)", (number, user["sub"], time.time(), json.dumps(body)))
    return dict(body, id=number)


uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning")
