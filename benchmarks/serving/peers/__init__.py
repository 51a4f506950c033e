"""The same scorers behind other servers, each written as its own documentation would have it."""
