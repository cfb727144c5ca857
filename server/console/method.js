// The methods of merging, as adapters/merging/method.py has them, with the settings that each reads.

export const METHODS = [
  { name: "linear", about: "the weighted sum; negative weights take a skill away", options: [] },
  {
    name: "slerp",
    about: "along the arc between two; for two that should both be heard",
    options: ["t"],
  },
  { name: "karcher", about: "the mean direction of all, at their mean length", options: [] },
  {
    name: "model_stock",
    about: "the mean of runs of one training, drawn towards the base",
    options: [],
    noWeights: true,
  },
  { name: "cat", about: "the weighted sum with all ranks side by side", options: [], noRank: true },
  { name: "svd", about: "the weighted sum, cut to the highest rank of any parent", options: [] },
  {
    name: "ties_knots",
    about: "largest entries, sign by vote, in one output basis",
    options: ["density"],
  },
  {
    name: "dare_ties_knots",
    about: "random entries scaled up, sign by vote, in one output basis",
    options: ["density", "seed"],
  },
  {
    name: "dare_linear_knots",
    about: "random entries scaled up and summed, in one output basis",
    options: ["density", "seed"],
  },
  {
    name: "magnitude_prune_knots",
    about: "largest entries summed, in one output basis",
    options: ["density"],
  },
  {
    name: "della_knots",
    about: "random entries, large ones likelier, by vote, in one output basis",
    options: ["density", "epsilon", "seed"],
  },
  {
    name: "della_linear_knots",
    about: "random entries, large ones likelier, summed, in one output basis",
    options: ["density", "epsilon", "seed"],
  },
  {
    name: "breadcrumbs_knots",
    about: "neither the largest nor the small entries, summed, in one output basis",
    options: ["density", "gamma"],
  },
  {
    name: "breadcrumbs_ties_knots",
    about: "neither the largest nor the small entries, by vote, in one output basis",
    options: ["density", "gamma"],
  },
  {
    name: "ties",
    about: "largest entries, sign by vote; on whole matrices, then cut",
    options: ["density"],
  },
  {
    name: "dare_ties",
    about: "random entries scaled up, sign by vote; on whole matrices, then cut",
    options: ["density", "seed"],
  },
  {
    name: "dare_linear",
    about: "random entries scaled up and summed; on whole matrices, then cut",
    options: ["density", "seed"],
  },
  {
    name: "magnitude_prune",
    about: "largest entries summed; on whole matrices, then cut",
    options: ["density"],
  },
  {
    name: "della",
    about: "random entries, large ones likelier, by vote; on whole matrices, then cut",
    options: ["density", "epsilon", "seed"],
  },
  {
    name: "della_linear",
    about: "random entries, large ones likelier, summed; on whole matrices, then cut",
    options: ["density", "epsilon", "seed"],
  },
  {
    name: "breadcrumbs",
    about: "neither the largest nor the small entries, summed; on whole matrices, then cut",
    options: ["density", "gamma"],
  },
  {
    name: "breadcrumbs_ties",
    about: "neither the largest nor the small entries, by vote; on whole matrices, then cut",
    options: ["density", "gamma"],
  },
];
