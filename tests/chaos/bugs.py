"""Bugs that would matter, as changes of the code, and for each the test that must fail with it. See planted_bugs.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One change for the worse. `text` occurs exactly once in `file`, and `test` is the id of a quick test."""

    name: str
    harm: str  # what it would do to a user
    file: str
    text: str
    instead: str
    test: str


SERVICE = (
    Bug(
        "version resolved twice",
        "an answer names a version that did not make it, and its items are another's",
        "service/api.py",
        "return _respond(_describe(request, retriever, query, unknown, found, started))",
        "return _respond(_describe(request, reloader.retriever, query, unknown, found, started))",
        "tests/chaos/test_regressions.py::test_a_request_swapped_under_is_of_one_version",
    ),
    Bug(
        "pointer moved before the load",
        "a swap to a version that cannot be loaded takes every replica that restarts out of service",
        "service/reloader.py",
        "        retriever = self._at_hand(name)\n        if retriever is None:\n",
        "        await asyncio.to_thread(self._store.activate, name, expected)\n"
        "        retriever = self._at_hand(name)\n        if retriever is None:\n",
        "tests/chaos/test_regressions.py::test_a_swap_to_what_cannot_be_loaded_leaves_the_pointer",
    ),
    Bug(
        "golden queries not replayed",
        "a model with the path lists of another training is served, and answers anything",
        "service/retriever.py",
        'replay(self.searcher, version.document("golden.json"))',
        "pass",
        "tests/chaos/test_regressions.py::test_what_answers_otherwise_than_recorded_is_not_served",
    ),
    Bug(
        "input echoed in an error",
        "what a client sent, a token by mistake, ends up in its logs and in ours",
        "service/problems.py",
        'return MESSAGES.get(entry["type"], "not what the schema says").format(**entry.get("ctx", {}))',
        "return f\"{entry['msg']}: {entry['input']!r}\"[:200]",
        "tests/chaos/test_regressions.py::test_a_value_that_does_not_fit_is_not_repeated",
    ),
    Bug(
        "an empty admin token opens",
        "DR_ADMIN_TOKEN= lets anybody swap versions",
        "service/settings.py",
        'return {name: value for name, value in stripped.items() if value != ""}',
        "return stripped",
        "tests/test_admin.py::test_admin_is_off_without_a_token",
    ),
    Bug(
        "only the latest history excluded",
        "who has a long history is offered what they bought before",
        "retrieval/searcher.py",
        "excluded = np.concatenate([excluded, known])",
        "excluded = np.concatenate([excluded, known[-self.manifest.history :]])",
        "tests/chaos/test_regressions.py::test_the_whole_history_is_excluded_though_the_model_reads_the_last_of_it",
    ),
    Bug(
        "a replica that ends says it is ready",
        "a rolling restart cuts requests off",
        "service/api.py",
        "if request.state.draining.begun:",
        "if False:",
        "tests/chaos/test_regressions.py::test_who_is_about_to_end_is_not_ready_and_answers",
    ),
    Bug(
        "who is too late is searched",
        "under overload all work is for answers that nobody waits for",
        "service/batcher.py",
        "self._queue = deque(entry for entry in self._queue if entry.left > 0)",
        "self._queue = deque(self._queue)",
        "tests/test_batcher.py::test_who_is_too_late_leaves_the_queue",
    ),
    Bug(
        "who hung up takes the others along",
        "one client that closes its connection stops the service for everybody",
        "service/batcher.py",
        "                if not entry.result.done():\n                    entry.result.set_result(",
        "                if True:\n                    entry.result.set_result(",
        "tests/test_batcher.py::test_who_hangs_up_while_searched_costs_no_other_an_answer",
    ),
)

STORE = (
    Bug(
        "the service needs torch",
        "the image of the service has none: it does not start",
        "retrieval/golden.py",
        "import numpy as np\n",
        "import numpy as np\nimport torch\n",
        "tests/test_architecture.py::test_importing_the_service_leaves_torch_out",
    ),
    Bug(
        "digests not checked on load",
        "a bit that flipped on disk is served: other items, unnoticed",
        "index_store/folder.py",
        "        loaded.verify_digests()\n",
        "",
        "tests/test_folder.py::test_every_flipped_bit_is_noticed",
    ),
    Bug(
        "parts not synced before the rename",
        "after a power failure a published version is empty files",
        "index_store/folder.py",
        "                            progress(done, total)\n                    file.flush()\n"
        "                    os.fsync(file.fileno())\n",
        "                            progress(done, total)\n                    file.flush()\n",
        "tests/chaos/test_regressions.py::test_what_is_named_is_on_disk",
    ),
    Bug(
        "external data accepted",
        "a model reads any file of the host that the service may read",
        "index_store/version.py",
        'if b"location" in bytes(self.parts["model.onnx"]):',
        "if False:",
        "tests/test_version.py::test_a_version_that_cannot_be_right_is_not_built",
    ),
    Bug(
        "a publish is not read back",
        "what the server lost or changed is listed, made current, and fails on every replica",
        "index_store/server.py",
        "        self._verify(manifest, step)\n",
        "",
        "tests/test_server_leases.py::test_what_is_not_read_back_as_written_is_not_published",
    ),
    Bug(
        "manifest written before the parts",
        "a sweep during a publish lists half a version",
        "index_store/server.py",
        "        for batch in _batches(self._keys.entries(version)):\n",
        "        self._server.put([(self._keys.manifest(name), manifest.to_json())])\n"
        "        for batch in _batches(self._keys.entries(version)):\n",
        "tests/chaos/test_regressions.py::test_a_sweep_beside_a_publish_lists_nothing_half",
    ),
    Bug(
        "a lease is not renewed",
        "a minute after a replica started, prune takes its version away",
        "index_store/server.py",
        "if wanted == self._held and time.monotonic() < self._renew_at:",
        "if wanted == self._held:",
        "tests/chaos/test_regressions.py::test_what_is_held_again_and_again_stays",
    ),
    Bug(
        "the pointer moves whatever was expected",
        "of two operators who swap at once both are told they won",
        "index_store/listing.py",
        "            if expected is not ... and expected != replaced:\n",
        "            if False:\n",
        "tests/test_store.py::test_compare_and_set[redis]",
    ),
    Bug(
        "requests retry like everything else",
        "while Redis hangs each request does, for three timeouts, and the queue behind it",
        "index_store/redis.py",
        "return _connect(self.address, self._request_timeout, Retry(NoBackoff(), 0))",
        "return _connect(self.address, self._request_timeout, Retry(NoBackoff(), RETRIES))",
        "tests/chaos/test_regressions.py::test_a_request_tries_a_frozen_server_once",
    ),
    Bug(
        "a pool that does not wait",
        "with more threads than connections requests fail on a server in good health",
        "index_store/redis.py",
        "    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]\n"
        "        max_connections=CONNECTIONS,\n        timeout=timeout,\n",
        "    pool = redis.ConnectionPool(\n        max_connections=CONNECTIONS,\n",
        "tests/chaos/test_regressions.py::test_more_threads_than_connections_wait_for_one",
    ),
    Bug(
        "a missing path list is taken for empty",
        "after Redis lost keys answers are short or wrong, and nobody is told",
        "index_store/remote.py",
        "if np.any(np.fromiter(map(len, found), np.int64, len(found)) != 4 * lengths):",
        "if np.any(np.fromiter(map(len, found), np.int64, len(found)) > 4 * lengths):",
        "tests/test_server_copies.py::test_a_remote_list_that_is_not_right_is_a_fault",
    ),
    Bug(
        "padding is part of the history",
        "who is answered together with others is answered as if they had clicked what the next one did",
        "index_store/kernels.py",
        "        for t in range(lengths[b]):\n            found[b, t] = vectors[items[start + t]]\n",
        "        for t in range(found.shape[1]):\n            found[b, t] = vectors[items[(start + t) % len(items)]]\n",
        "tests/test_retrieval.py::test_padding_reaches_the_model_as_nothing",
    ),
    Bug(
        "a path's last items are read",
        "of a crowded path the least popular items are answered",
        "index_store/kernels.py",
        "taken[end] = items[offsets[rows[i]] + j]",
        "taken[end] = items[offsets[rows[i] + 1] - 1 - j]",
        "tests/test_retrieval.py::test_answers_equal_the_slow_twin",
    ),
)

TRAINER = (
    Bug(
        "the beam goes where no item is",
        "half of the paths that are searched are empty, and answers are short",
        "trainer/model.py",
        "        joint = torch.where(children < 0, -torch.inf, joint)\n",
        "        pass\n",
        "tests/test_model.py::test_the_beam_spends_no_place_on_a_dead_prefix",
    ),
    Bug(
        "crowding is rewarded",
        "reassignment moves all items to few paths, and the index collapses",
        "trainer/assignment.py",
        "gain -= alpha * _marginal(load[places[s]])",
        "gain += alpha * _marginal(load[places[s]])",
        "tests/test_assignment.py::test_descent_finds_what_exhaustive_search_finds",
    ),
    Bug(
        "the target is in the history",
        "the reranker learns from what it is asked to predict; measured recall is too good to be true",
        "trainer/requests.py",
        "[sequence[:cut] for sequence, cut in zip(sequences, cuts, strict=True)],",
        "[sequence[: cut + 1] for sequence, cut in zip(sequences, cuts, strict=True)],",
        "tests/test_data.py::test_of_tuning_users_training_sees_the_history_alone",
    ),
    Bug(
        "a resumed run draws other numbers",
        "a training that was interrupted makes another version than one that was not",
        "trainer/train.py",
        "generator = np.random.default_rng([config.seed, 2, epoch])",
        "generator = np.random.default_rng([config.seed, 2, epoch - done])",
        "tests/test_train.py::test_an_interrupted_run_continues_to_the_same_version",
    ),
)

BUGS = (*SERVICE, *STORE, *TRAINER)
