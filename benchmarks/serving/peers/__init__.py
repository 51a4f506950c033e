"""The same scorers behind other servers, each written as its documentation recommends."""
