"""What can go wrong, by who must act. Not epp's tree: the simulator imports names only."""


class SimulatorError(Exception):
    """The operator must mend a flag, a folder or a port; `str()` is one sentence that names it and the remedy."""


class ApiError(Exception):
    """A request ends with an error answer in OpenAI's form."""

    status = 400
    type = "BadRequestError"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, object]:
        """The JSON object of the answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}


class ModelNotFoundError(ApiError):
    """The request names a model this pod does not serve."""

    status = 404
    type = "NotFoundError"
