/** Paths from input to logits, and what lies before and behind a node. */

/**
 * The strongest paths: a path is as strong as its weakest edge; of equal ones the larger sum goes first.
 * The weakest edge of each is then left out, and the next one sought, so no two are the same.
 */
export function strongestPaths(edges, count) {
  let left = [...edges].sort((a, b) => a.turn - b.turn);
  const found = [];
  while (found.length < count) {
    const path = strongestPath(left);
    if (!path) break;
    found.push(path);
    left = left.filter((edge) => edge !== path.weakest);
  }
  return found;
}

/** Of edges in topological order. */
function strongestPath(edges) {
  const best = new Map([["input", { width: Infinity, sum: 0, via: null }]]);
  for (const edge of edges) {
    const before = best.get(edge.src.name);
    if (!before) continue;
    const width = Math.min(before.width, edge.strength);
    const sum = before.sum + edge.strength;
    const known = best.get(edge.dst.name);
    if (!known || width > known.width || (width === known.width && sum > known.sum)) {
      best.set(edge.dst.name, { width, sum, via: edge });
    }
  }
  if (!best.has("logits")) return null;
  const path = [];
  for (let at = "logits"; at !== "input"; at = path[0].src.name) path.unshift(best.get(at).via);
  return { edges: path, weakest: path.reduce((a, b) => (b.strength < a.strength ? b : a)) };
}

/** The edges on ways into and out of any of these nodes. */
export function throughNodes(edges, names) {
  const found = new Set();
  for (const name of names) {
    for (const [from, to] of [["dst", "src"], ["src", "dst"]]) {
      const by = Map.groupBy ? Map.groupBy(edges, (e) => e[from].name) : grouped(edges, from);
      const seen = new Set([name]);
      const todo = [name];
      while (todo.length) {
        for (const edge of by.get(todo.pop()) ?? []) {
          found.add(edge);
          if (!seen.has(edge[to].name)) {
            seen.add(edge[to].name);
            todo.push(edge[to].name);
          }
        }
      }
    }
  }
  return edges.filter((edge) => found.has(edge));
}

function grouped(edges, end) {
  const by = new Map();
  for (const edge of edges) by.set(edge[end].name, [...(by.get(edge[end].name) ?? []), edge]);
  return by;
}
