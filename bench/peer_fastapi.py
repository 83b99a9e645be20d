"""The peer: a minimal FastAPI server with the same route, sign-in and answer, as people write it today.

No audit, no journal, no idempotency, no limits: it only checks a token and a role and calls a function.
"""

import os
import time

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

SECRET = os.environ["PEER_SECRET"]
app = FastAPI()
bearer = HTTPBearer()


def noop():
    """The task."""


TASKS = {"noop": noop}


def caller(credentials: HTTPAuthorizationCredentials = Depends(bearer)):
    try:
        claims = jwt.decode(credentials.credentials, SECRET, algorithms=["HS256"])
    except jwt.PyJWTError:
        raise HTTPException(401, "Invalid authentication credentials")
    if "operator" not in claims.get("roles", []):
        raise HTTPException(403, "Role 'operator' required")
    return claims


@app.get("/token")
def token():
    return {"access_token": jwt.encode({"sub": "admin", "roles": ["operator"], "exp": time.time() + 3600}, SECRET, algorithm="HS256")}


@app.post("/execute/{task_name}")
def execute(task_name: str, parameters: dict = {}, user: dict = Depends(caller)):
    if task_name not in TASKS:
        raise HTTPException(404, "Task '%s' not found" % task_name)
    result = TASKS[task_name](**parameters)
    return {"task_name": task_name, "parameters": parameters, "result": result, "status": "success", "executed_by": user["sub"]}


uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning")
