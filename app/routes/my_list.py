"""`/list`: the features starred in this browser, of all studies. The list is kept there; the server knows nothing of it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query

from seedscope.app import render
from seedscope.app.routes.address import Plain

router = APIRouter()


@dataclass(frozen=True)
class MyListPage:
    """`/list`: a frame that the browser fills."""

    kept_in: str


@render.page(router, "/list", "my_list.html", "my_list")
def my_list(address: Annotated[Plain, Query()]) -> MyListPage:
    """The features starred in this browser."""
    return MyListPage("this browser")
