"""The tree operations grow the trees that mctx grows, node by node.

A world of tables: what an action leads to, earns and is worth are functions of the actions before
it, so that both sides see the same one. mctx expands one action a simulation; ours does when a
response gets its reaction there, and the reaction its own responses. mctx has one node for the two.

mctx counts rewards before the discount, `Q = r + gamma * V`, and a return here gains the reward
before it is discounted, `gamma * (r + V)`: its world earns `gamma * r`, and its `Q` is
`gamma` times ours.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from jax import lax

from ixjax.search import RULES, Tree, add_children, backpropagate, uct_select

TABLE = 1009  # entries; paths that share one are alike to both sides
GAMMA = 0.9


class World:
    """Values, rewards and priors for the places that action paths lead to, `[trees]` worlds."""

    def __init__(self, seed: int, *, trees: int, actions: int, rewards: bool):
        rng = np.random.default_rng(seed)
        self.trees, self.actions = trees, actions
        self.value = jnp.asarray(rng.random((trees, TABLE)))
        self.reward = jnp.asarray(rng.random((trees, TABLE)) * rewards / 4)
        self.prior = jnp.asarray(rng.normal(size=(trees, TABLE, actions)))

    def after(self, place: jax.Array, action: jax.Array) -> jax.Array:
        return (place * 31 + action + 1) % TABLE

    def look(self, table: jax.Array, place: jax.Array) -> jax.Array:
        return table[jnp.arange(self.trees), place]


def uct_action(_key, tree, node, _depth=None, *, c: float) -> jax.Array:
    """UCT, written against mctx's tree (un-batched)."""
    tried = tree.children_visits[node]
    explore = jnp.sqrt(jnp.log(tree.node_visits[node]) / jnp.maximum(tried, 1))
    score = tree.qvalues(node) / GAMMA + c * explore
    return jnp.argmax(jnp.where(tried == 0, jnp.inf, score)).astype(jnp.int32)


def puct_action(_key, tree, node, _depth=None, *, c: float) -> jax.Array:
    """PUCT with the parent's own mean for what was not tried."""
    tried = tree.children_visits[node]
    worth = jnp.where(tried == 0, tree.node_values[node], tree.qvalues(node) / GAMMA)
    policy = jax.nn.softmax(tree.children_prior_logits[node])
    explore = policy * jnp.sqrt(tree.node_visits[node]) / (1 + tried)
    return jnp.argmax(worth + c * explore).astype(jnp.int32)


ACTIONS = {"uct": uct_action, "puct": puct_action}


def their_tree(world: World, *, simulations: int, rule: str, c: float) -> mctx.Tree:
    choose = partial(ACTIONS[rule], c=c)
    root = jnp.zeros(world.trees, jnp.int32)

    def step(_params, _key, action, place):
        place = world.after(place, action)
        output = mctx.RecurrentFnOutput(
            reward=GAMMA * world.look(world.reward, place),
            discount=jnp.full(world.trees, GAMMA),
            prior_logits=world.look(world.prior, place),
            value=world.look(world.value, place),
        )
        return output, place

    @jax.jit
    def search():
        return mctx.search(
            params=(),
            rng_key=jax.random.key(0),
            root=mctx.RootFnOutput(
                prior_logits=world.look(world.prior, root),
                value=world.look(world.value, root),
                embedding=root,
            ),
            recurrent_fn=step,
            root_action_selection_fn=choose,
            interior_action_selection_fn=choose,
            num_simulations=simulations,
        )

    return jax.device_get(search())


def our_tree(world: World, *, simulations: int, rule: str, c: float) -> Tree:
    trees, actions = world.trees, world.actions
    nodes = 1 + actions + simulations * (1 + actions)
    rows = jnp.arange(trees)[:, None]
    root = jnp.zeros((trees, 1), jnp.int32)

    def respond(tree: Tree, place: jax.Array, decision: jax.Array) -> tuple[Tree, jax.Array]:
        """All responses to `decision[B, 1]`; `place[B, N]` says where each node is."""
        here = place[rows, decision]
        parents = jnp.repeat(decision, actions, axis=1)
        tree, new = add_children(tree, parents, prior=world.look(world.prior, here[:, 0]))
        return tree, place.at[rows, new].set(
            world.after(here, jnp.arange(actions, dtype=jnp.int32)[None])
        )

    def simulate(_, state: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        tree, place = state
        tree, response = uct_select(tree, c, rule=RULES[rule])
        here = place[rows, response]
        reward, value = (world.look(t, here[:, 0])[:, None] for t in (world.reward, world.value))
        tree, decision = add_children(tree, response, reward=reward)
        tree, place = respond(tree, place.at[rows, decision].set(here), decision)
        return backpropagate(tree, decision, value, gamma=GAMMA, selected=response), place

    @jax.jit
    def search() -> Tree:
        tree = Tree.create(trees, nodes, actions, value_dtype="float64")
        tree, place = respond(tree, jnp.zeros((trees, nodes), jnp.int32), root)
        # mctx's root has been looked at before the first simulation.
        tree = backpropagate(tree, root, world.look(world.value, root[:, 0])[:, None])
        return lax.fori_loop(0, simulations, simulate, (tree, place))[0]

    return jax.device_get(search())


def assert_same_trees(ours: Tree, theirs: mctx.Tree, *, simulations: int) -> None:
    """Along every action path that either side has: visits equal, values to rounding."""
    for b in range(ours.parent.shape[0]):
        compared, open_pairs = 0, [(Tree.ROOT, mctx.Tree.ROOT_INDEX, ())]
        while open_pairs:
            decision, node, path = open_pairs.pop()
            compared += 1
            assert ours.visits[b, decision] == theirs.node_visits[b, node], path
            np.testing.assert_allclose(
                ours.value[b, decision], theirs.node_values[b, node], rtol=1e-9, err_msg=str(path)
            )
            for action, response in enumerate(ours.children[b, decision].tolist()):
                there = (*path, action)
                assert ours.visits[b, response] == theirs.children_visits[b, node, action], there
                child = theirs.children_index[b, node, action]
                reaction = ours.children[b, response, 0]
                assert (child == mctx.Tree.UNVISITED) == (reaction == Tree.NO_NODE), there
                if reaction != Tree.NO_NODE:
                    open_pairs.append((int(reaction), int(child), there))
        assert compared == 1 + simulations
        assert (ours.pending[b] == 0).all()


@pytest.mark.parametrize(
    ("rule", "seed", "trees", "actions", "simulations", "rewards", "c"),
    [
        ("uct", 0, 4, 3, 60, False, 1.4),
        ("uct", 1, 2, 8, 128, True, 1.0),
        ("uct", 2, 8, 2, 40, True, 0.1),
        ("puct", 3, 4, 3, 60, True, 1.0),
        ("puct", 4, 1, 5, 200, False, 0.3),
    ],
)
def test_every_node_has_the_visits_that_mctx_gives_it(
    rule, seed, trees, actions, simulations, rewards, c
):
    with jax.enable_x64(True):
        world = World(seed, trees=trees, actions=actions, rewards=rewards)
        ours = our_tree(world, simulations=simulations, rule=rule, c=c)
        theirs = their_tree(world, simulations=simulations, rule=rule, c=c)
    assert_same_trees(ours, theirs, simulations=simulations)


def test_the_comparison_sees_another_constant():
    with jax.enable_x64(True):
        world = World(0, trees=1, actions=3, rewards=False)
        ours = our_tree(world, simulations=60, rule="uct", c=1.0)
        theirs = their_tree(world, simulations=60, rule="uct", c=0.9)
    with pytest.raises(AssertionError):
        assert_same_trees(ours, theirs, simulations=60)
