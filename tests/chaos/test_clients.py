"""Clients in languages that must be installed first: here Java's HttpClient, which offers HTTP/2 with each request."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.chaos.conftest import Goal, amount
from tests.conftest import Planted
from tests.redis_servers import program
from tests.wire import target

#: A client with default settings that sends requests, HEAD among them, first in turn and then at once. For each answer
#: it prints the status and one more than the number of candidates.
JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.stream.Stream;

class Client {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        var address = URI.create(arguments[0] + "/v1/retrieve");
        int times = Integer.parseInt(arguments[1]);
        var body = "{\\"history\\": [1, 5, 9], \\"k\\": 3}";
        var post = HttpRequest.newBuilder(address).header("Content-Type", "application/json");
        var whole = post.copy().POST(BodyPublishers.ofString(body)).build();
        var chunked = post.copy().POST(BodyPublishers.fromPublisher(BodyPublishers.ofString(body))).build();
        var ready = HttpRequest.newBuilder(URI.create(arguments[0] + "/readyz"))
            .method("HEAD", BodyPublishers.noBody()).build();
        for (int i = 0; i < times; i++)
            for (var request : new HttpRequest[] {whole, chunked, ready}) {
                var answer = client.send(request, BodyHandlers.ofString());
                System.out.println(answer.statusCode() + " " + answer.body().split("item_id", -1).length);
            }
        var asked = Stream.generate(() -> client.sendAsync(whole, BodyHandlers.ofString())).limit(times).toList();
        for (var answer : asked)
            System.out.println(answer.get().statusCode() + " " + answer.get().body().split("item_id", -1).length);
    }
}
"""


def test_java(planted: Planted, tmp_path: Path, goal: Goal) -> None:
    """Promise: hostile input.

    An offer of HTTP/2 is harmless: each request is answered as usual, and nothing is logged.
    """
    times = amount(200)
    (tmp_path / "Client.java").write_text(JAVA)
    with target(planted, tmp_path, max_queue=1000) as live:
        before = live.replica.log()
        command = [program("java"), str(tmp_path / "Client.java"), live.replica.address, str(times)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        live.check_unharmed()
        assert live.replica.log() == before

    assert done.returncode == 0, done.stderr
    right = ["200 4", "200 4", "200 1"] * times + ["200 4"] * times
    printed = done.stdout.splitlines()
    goal(
        "Java's HttpClient with default settings: requests answered rightly",
        f"{printed.count('200 4')} answered",
        printed == right,
    )
