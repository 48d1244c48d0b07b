"""Which pages hold which tokens: a tree over the contents of pages, so that a prefix is computed once.

A node is one page and the tokens in it; its parent is the page before it. Full pages are found by a keyed hash over
their parent's key and their tokens; the first key is made of a secret, the model, the K/V format and an optional salt,
so nobody can aim at another's pages, and those of different salts never meet. Of a page that differs, or is not full,
the tokens that agree are found by comparing, and can be copied.

A page with no reference stays in the tree, idle, until its memory is needed. Idle pages go leaf first, the one with the
least worth first: its worth is what computing it again costs, counted from the worth of whatever went last, so that age
and cost weigh together (GreedyDual; Young 1994, Cao and Irani 1997).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from heapq import heappop, heappush

NO_PAGE = -1
TOKEN_BYTES = 4  # a token is a 32-bit integer in `tokens`
KEY_BYTES = 16
REBUILD_DOUBLES = 4096
"""Tokens before a page that make computing it twice as costly as the first page, by their attention."""


class Node:
    """One page of the tree. `tokens` has `TOKEN_BYTES` a token; a full page's node alone can be a parent."""

    __slots__ = ("children", "depth", "key", "page", "parent", "tokens", "worth")

    def __init__(self, parent: Node | None, key: bytes, tokens: bytes, page: int, depth: int) -> None:
        self.parent = parent
        self.key = key
        self.tokens = tokens
        self.page = page
        self.depth = depth  # tokens before this page
        self.children: list[Node] = []
        self.worth = 0.0


class PrefixCache:
    """The tree. It counts no references: whoever does (`PagePool`) tells when a page becomes idle, and takes one."""

    def __init__(self, page_tokens: int, identity: bytes) -> None:
        """`identity` is what all K and V in the pages depend on beside the tokens, with a secret of this process."""
        self._page_bytes = page_tokens * TOKEN_BYTES
        key = blake2b(identity, digest_size=32).digest()
        self._keyed = blake2b(key=key, digest_size=KEY_BYTES)
        self._roots: dict[bytes, Node] = {}  # those with children, by key
        self._full: dict[bytes, Node] = {}
        self._by_page: dict[int, Node] = {}
        self._idle: set[int] = set()
        self._heap: list[tuple[float, int, Node]] = []  # idle leaves, and entries that are no longer true
        self._pushed = 0
        self._level = 0.0  # worth of the page that went last

    # ---- finding

    def root(self, salt: str) -> Node:
        """Parent of all first pages of one salt. Not to be kept: without children it is forgotten."""
        key = self._hash(salt.encode())
        return self._roots.get(key) or Node(None, key, b"", NO_PAGE, 0)

    def find(self, parent: Node, tokens: bytes) -> Node | None:
        """The page after `parent` that is full of exactly these tokens."""
        node = self._full.get(self._key(parent, tokens))
        return node if node is not None and node.tokens == tokens else None

    def walk(self, parent: Node, tokens: bytes) -> list[Node]:
        """The full pages after `parent` that hold the beginning of `tokens`."""
        path = list[Node]()
        for start in range(0, len(tokens) - self._page_bytes + 1, self._page_bytes):
            node = self.find(parent, tokens[start : start + self._page_bytes])
            if node is None:
                break
            path.append(node)
            parent = node
        return path

    def closest(self, parent: Node, tokens: bytes) -> tuple[Node | None, int]:
        """(page after `parent`, tokens): the one that agrees with `tokens` for longest, and for how many tokens."""
        best, most = None, 0
        for child in parent.children:
            if (common := common_tokens(child.tokens, tokens)) > most:
                best, most = child, common
        return best, most

    # ---- changing

    def insert(self, parent: Node, tokens: bytes, page: int) -> Node:
        """Enter a page that is in use and in no node. A full one must not be there already (`find`)."""
        assert page not in self._by_page, f"page {page} is in the tree already"
        node = Node(parent, b"", tokens, page, parent.depth + len(parent.tokens) // TOKEN_BYTES)
        if len(tokens) == self._page_bytes:
            node.key = self._key(parent, tokens)
            assert node.key not in self._full, "a page is entered twice"
            self._full[node.key] = node
        if parent.parent is None:
            self._roots[parent.key] = parent
        parent.children.append(node)
        self._by_page[page] = node
        return node

    def forget(self, node: Node) -> None:
        """Take a leaf out of the tree; the page itself is the caller's."""
        assert not node.children, "a page is forgotten before those after it"
        assert node.parent is not None, "the root is forgotten"
        node.parent.children.remove(node)
        del self._by_page[node.page]
        if node.key:
            del self._full[node.key]
        self._idle.discard(node.page)
        if not node.parent.children:
            self._lost_last_child(node.parent)

    def prune(self, node: Node) -> list[int]:
        """Take an idle page and all that follow it out of the tree: their pages, none if one of them is in use."""
        branch = [node]
        for one in branch:
            branch += one.children
        if any(one.page not in self._idle for one in branch):
            return []
        for one in reversed(branch):
            self.forget(one)
        return [one.page for one in branch]

    def move(self, page: int, target: int) -> None:
        """What `page` holds will be in `target`, which is in no node."""
        node = self._by_page.pop(page, None)
        if node is None:
            return
        node.page = target
        self._by_page[target] = node
        if page in self._idle:
            self._idle.remove(page)
            self._idle.add(target)

    def has(self, node: Node) -> bool:
        """Whether a node is in the tree still, and with it all those before it."""
        return self._by_page.get(node.page) is node

    def depth(self, page: int) -> int:
        """Tokens before a page of the tree."""
        return self._by_page[page].depth

    def node_of(self, page: int) -> Node | None:
        return self._by_page.get(page)

    # ---- idle pages

    @property
    def idle(self) -> int:
        """Pages of the tree that nobody refers to: memory that is there for the taking."""
        return len(self._idle)

    def idle_pages(self) -> Iterable[int]:
        return self._idle

    def is_idle(self, page: int) -> bool:
        return page in self._idle

    def retire(self, page: int) -> bool:
        """The last reference to `page` is gone: keep it idle if it is in the tree, else False."""
        node = self._by_page.get(page)
        if node is None:
            return False
        self._idle.add(page)
        node.worth = self._level + 1 + node.depth / REBUILD_DOUBLES
        if not node.children:
            self._push(node)
        return True

    def revive(self, page: int) -> None:
        """Somebody refers to an idle page again."""
        self._idle.remove(page)

    def reclaim(self) -> int:
        """The idle page of least worth, no longer in the tree. There must be one."""
        while True:
            entry = heappop(self._heap)
            if self._is_true(entry):
                break
        self._level, _, node = entry
        self.forget(node)
        return node.page

    def _lost_last_child(self, node: Node) -> None:
        if node.parent is None:
            del self._roots[node.key]
        elif node.page in self._idle:
            self._push(node)

    def _push(self, leaf: Node) -> None:
        self._pushed += 1  # equals go in the order in which they came
        heappush(self._heap, (leaf.worth, self._pushed, leaf))
        if len(self._heap) > 2 * len(self._by_page) + 64:
            self._heap = sorted(entry for entry in self._heap if self._is_true(entry))

    def _is_true(self, entry: tuple[float, int, Node]) -> bool:
        worth, _, node = entry
        known = self.has(node) and node.page in self._idle
        return known and not node.children and worth == node.worth

    def _key(self, parent: Node, tokens: bytes) -> bytes:
        return self._hash(parent.key + tokens)

    def _hash(self, content: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(content)
        return keyed.digest()

    # ---- invariants

    def check(self) -> None:
        for page, node in self._by_page.items():
            assert node.page == page, "a page is under another's number"
            assert node.parent is not None
            assert node in node.parent.children, "a page's parent does not know it"
            assert node.parent.page == NO_PAGE or self._by_page.get(node.parent.page) is node.parent, (
                "a page lost its parent"
            )
            assert not node.children or len(node.tokens) == self._page_bytes, "a page follows one that is not full"
            assert 0 < len(node.tokens) <= self._page_bytes
            assert bool(node.key) == (len(node.tokens) == self._page_bytes), "full pages have keys, others have none"
        keys = {node.key: node for node in self._by_page.values() if node.key}
        assert keys == self._full, "keys differ from pages"
        assert self._idle <= self._by_page.keys(), "an idle page is in no node"
        leaves = {page for page in self._idle if not self._by_page[page].children}
        assert leaves <= {entry[2].page for entry in self._heap if self._is_true(entry)}, "an idle leaf cannot be taken"


def common_tokens(one: bytes, other: bytes) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(one), len(other)) // TOKEN_BYTES
    while low < high:  # agreement up to a point is agreement before it
        middle = (low + high + 1) // 2
        if one[: middle * TOKEN_BYTES] == other[: middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
