"""A witness of what a server does: it sends calls, and knows each state in which the server may be after the answers.

Calls at once may have been carried out in several orders. The witness keeps a model for each of them, as long as later
answers do not tell which it was. If no order explains the answers, `settle` raises AssertionError.
"""

import threading
import time
from dataclasses import replace
from typing import Any

import requests

from contract_tests.generated.exchanges import (
    OPERATIONS,
    Exchange,
    of_contract,
    request_to,
    seen,
    send_all,
    signed,
    timeless,
)
from contract_tests.generated.model import SECOND, Account, Answer, Call, Model, Settings, after_some_order, copied
from contract_tests.target.process import ServerProcess
from contract_tests.target.target import Target


class Witness:
    """Sends calls to one server, and compares the answers with those of the model.

    `settings` are the server's. If the server's clock stands still, times are compared, too.
    """

    def __init__(self, server: ServerProcess | Target, settings: Settings) -> None:
        self.server = server
        self.is_exact = isinstance(server, ServerProcess) and server.frozen is not None
        self.models = [Model(settings)]
        self.story: list[str] = []
        self._local = threading.local()  # a session for each thread

    @property
    def model(self) -> Model:
        """One of the states in which the server may be."""
        return self.models[0]

    def account(self, user_id: str) -> Account | None:
        return self.model.accounts.get(user_id)

    def now(self) -> int:
        return int(self.server.now() * SECOND)

    def prepare(self, operation: str, user_id: str, key: str, **arguments: Any) -> Exchange:
        """Return a signed call that is not sent yet. The arguments are those of `Call`."""
        call = Call(operation, user_id, key, self.now() // SECOND, "", "", **arguments)
        return signed(self.server, call, OPERATIONS[operation])

    def send(self, exchange: Exchange) -> None:
        """Send a request, and keep its answer and when that was."""
        request = request_to(self.server, exchange)
        if not hasattr(self._local, "session"):
            self._local.session = self.server.client().session
        exchange.began = time.monotonic()
        try:
            exchange.answer = seen(self._local.session.send(request, timeout=60, allow_redirects=False))
        except requests.RequestException:
            exchange.answer = None
        exchange.ended = time.monotonic()

    def settle(self, *exchanges: Exchange) -> None:
        """Keep the states that explain the answers. Raise AssertionError if there is none.

        A call without an answer was carried out, or it was not.
        """
        self.story += [f"  {exchange.call}: {exchange.answer}" for exchange in exchanges]
        answered = [exchange for exchange in exchanges if exchange.answer]
        lost = [replace(exchange, ended=float("inf")) for exchange in exchanges if not exchange.answer]
        models = [
            after
            for model in self.models
            for carried_out in ([answered] if not lost else [answered, answered + lost])
            for after in after_some_order(
                model,
                [(exchange.call, exchange.answer) for exchange in carried_out],
                self.fits,
                self.now(),
                [(exchange.began, exchange.ended) for exchange in carried_out],
            )
        ]
        if not models:
            wanted = [copied(self.model).answer(exchange.call, self.now()) for exchange in exchanges]
            told = "\n".join(self.story[-12:])
            raise AssertionError(f"no order explains these answers; one after the other gets {wanted}\n{told}")
        self.models = [model for index, model in enumerate(models) if model not in models[:index]]

    def fits(self, expected: Answer, answer: Answer | None) -> bool:
        if answer is None:  # it was lost
            return True
        answer = of_contract(answer, expected)
        return expected == answer if self.is_exact else timeless(expected) == timeless(answer)

    def restart(self) -> None:
        """Note that the server was restarted."""
        for model in self.models:
            model.restart()

    def do(self, *exchanges: Exchange) -> Answer:
        """Send calls, at once if there are several, and settle them. Return the last answer."""
        send_all(self.send, exchanges)
        self.settle(*exchanges)
        answer = exchanges[-1].answer
        assert answer, "the server gave no answer"
        return answer

    def call(self, operation: str, user_id: str, key: str, **arguments: Any) -> Answer:
        """Make one call and settle it."""
        return self.do(self.prepare(operation, user_id, key, **arguments))

    def look(self, user_id: str, keys: list[str]) -> None:
        """Ask for everything that the server shows of a user under these keys. This changes nothing."""
        for key in keys:
            self.call("listBackupVersions", user_id, key)
        account = self.account(user_id)
        if account is None or len(self.models) > 1 and any(user_id not in model.accounts for model in self.models):
            return
        self.call("fetchBackup", user_id, account.key)
        for version in account.versions:
            self.call("fetchBackupVersion", user_id, account.key, version=version.number)
        if account.latest:  # the answer shows what counts against the limits
            self.call("storeBackup", user_id, account.key, blob=account.latest.blob)
