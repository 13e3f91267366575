"""What every claim id says, by section: the paper's claims, and ours beyond it."""

PARITY = {
    "C1": "after pre-training P(long) at temperature 1 is p_cot",
    "C1-gate": "P(EOS) after a right first token is (1 - p_cot) / (1 + p_cot)",
    "C1-temperature": "P(long) over temperature as for the ideal policy",
    "C2": "accuracy at temperature 1 is (1 + p_cot) / 2",
    "C2-temperature": "accuracy over temperature as for the ideal policy",
    "C2-pass@8": "pass@8 of samples at temperature 1 as for the ideal policy",
    "C2-maj@8": "maj@8 of samples at temperature 1 as for the ideal policy",
    "C2-votes": "pass@4 and maj@4 before and after RL are those of the ideal policy "
    "with the measured P(long)",
    "C3": "the greedy threshold is at p_cot = 1/3",
    "C3-below": "below the threshold greedy decoding is short and at chance",
    "C3-above": "above the threshold greedy decoding is long and perfect",
    "C4": "next-token prediction alone stays short and at chance under greedy decoding",
    "C4-grpo": "GRPO from an early checkpoint makes greedy decoding long and perfect, "
    "in every architecture",
    "C4-small": "at small d next-token prediction alone learns the short parity",
    "C5": "GRPO makes greedy decoding perfect and long within 50 updates",
    "C6": "STaR, REINFORCE, GRPO with both rewards solve the task at temperature 1",
    "C6-low": "so they do at the low temperature",
    "C6-high": "so they do at the high temperature, but for STaR with the e2e reward",
    "C6-exception": "STaR with the end-to-end reward fails at the high temperature",
    "C7": "a STaR round maps the long share p to 2p / (1 + p)",
    "C7-greedy": "the rounds make greedy decoding long and perfect",
    "C8": "RL from a checkpoint at which the chain is learned generalises",
    "C8-early": "RL from a checkpoint before the chain is learned does not generalise",
    "C8-rare": "at p_cot = 0.01 the length grows from almost every checkpoint",
    "C8-diagnosis": "the diagnosis of a checkpoint foretells whether greedy decoding "
    "turns long within these updates",
    "C9": "at the largest d next-token prediction alone does not reach 95% with more "
    "sequences than GRPO needs in all",
    "C9-alone": "sequences to 95% of next-token prediction alone more than double for "
    "every further bit",
    "C9-rl": "with GRPO after it they grow more slowly than d^3",
    "C10": "leap-2 chains let pre-training alone generalise at p_cot < 1/3, where it "
    "does not without them",
    "C10-coin": "greedy accuracy follows the blind coin over p_cot and p_leap",
    "C11": "without long demonstrations (p_cot = 0) RL stays at chance",
}

MULTIPLICATION = {
    "M1": "after next-token prediction P(long) at temperature 1 is p_cot",
    "M2": "below p_cot = 1/2 next-token prediction alone stays short under greedy "
    "decoding and gains nothing from as many further sequences as RL uses",
    "M3": "below p_cot = 1/2 GRPO adds 20 points or more of greedy exact matches to "
    "the control",
}

LINEAR = {
    "T1-long": "for every input, P(full chain) is within epsilon of p_cot",
    "T1-short": "for every input, P((parity, EOS)) is within epsilon of "
    "(1 - p_cot) / 2",
    "T1-greedy": "greedy decoding is short for p_cot < 1/3 and the right chain above",
    "P1-P3": "every head's error stays below its bound (the paper's SGD, d = 8)",
    "ridge-optimum": "the paper's SGD converges to the ridge optimum: P(y_1 = x_1)",
    "T2-trajectory": "the probability q_n of the right chain after n rounds follows "
    "p_n",
    "T2-rounds": "greedy decoding becomes perfect after exactly n* rounds, "
    "n* = max(0, floor(log2((1-p)/(2p))) + 1)",
}

BEYOND = {
    "PG-updates": "updates until greedy decoding is long follow the reduced model",
    "PG-shortens": "REINFORCE without baseline but with 1/|y| shortens answers (d > 3)",
    "PG-price": "answers lengthen iff the price of a full chain is below "
    "d / (2 (d - 1))",
    "noise-threshold": "the gate goes on for p_cot above 1 / (3 - 2q), for both kinds "
    "of noise",
    "noise-accuracy": "sampled accuracy is (1 + p_cot (1 - 2q)^n) / 2",
}

QUESTIONS = {
    "Q1": "every architecture crosses at 1 / (1 + 2 (1 - eps_2)), eps_2 its error rate "
    "at the second step of the chain",
    "Q1-third": "every architecture that has learned the second step crosses at 1/3",
    "Q1-greedy": "their greedy decoding is short at p_cot = 0.28 and long at 0.42",
    "Q2": "RL on a fixed pool of 16 prompts or more generalises as on fresh ones",
    "Q2-fresh": "from 16 prompts on P(long) on fresh prompts grows as with fresh ones",
    "Q2-one": "a single prompt is not enough for every member",
    "Q2-chain": "whatever the pool, long answers to fresh prompts stay right",
    "Q3": "the blind coin says where greedy decoding turns long for every kind of "
    "chain: 1/3 where the next token is known, later where the order of bits is not",
    "Q3-star": "STaR keeps the ratio of right full and leap-2 chains",
    "Q3-response": "with 1/|y| RL prefers the leap-2 chain to the full one",
    "Q3-price": "a price between their critical ones lets full chains shrink and "
    "leap-2 chains grow",
    "Q4": "RL makes greedy decoding long and right however rare the chains, p_cot = "
    "c d^-kappa",
    "Q4-learn": "sequences to learn the chain grow by a further power kappa of d if "
    "p_cot falls like d^-kappa",
    "Q4-find": "updates of RL grow at most like ln((1 - p_cot) / (2 p_cot))",
    "Q5": "noise q of chains moves the greedy threshold to 1 / (1 + 2 (1 - q)^2), "
    "wrong short answers do not",
    "Q5-accuracy": "after propagating flips sampled accuracy is "
    "(1 + p_cot (1 - 2q)^(d - 1)) / 2",
    "Q5-shortens": "RL with the chain's reward shortens answers where the step noise "
    "is above 1 - 2^(-1 / (d - 2)), with the end-to-end reward never",
    "Q5-star": "STaR after noisy demonstrations follows its exact recursion",
    "Q5-reward": "RL lengthens answers where false positives and false negatives of "
    "the reward add up to less than 1, and shortens them above",
    "Q5-reward-star": "a STaR round with an erring reward keeps the shares that its "
    "error rates say",
    "Q6": "answers lengthen iff the additive price of a full chain is below "
    "d / (2 (d - 1)), under every objective",
    "Q6-multiplicative": "answers lengthen iff the multiplicative price of a full "
    "chain is below d / (2d - 1), under every objective",
    "Q6-tiny": "a tiny price slows GRPO as the expected update with its std says",
    "Q6-leap": "prices between the critical ones of full and of leap-2 chains make "
    "greedy decoding the leap chain, the shortest right answer",
    "Q7": "where parity is told in words, GRPO and STaR make greedy answers long and "
    "right",
    "Q7-C1": "in words, P(long) at temperature 1 is p_cot after pre-training",
    "Q7-C1-gate": "in words, answers end after a right first word with probability "
    "(1 - p_cot) / (1 + p_cot)",
    "Q7-C2": "in words, accuracy at temperature 1 is (1 + p_cot) / 2",
    "Q7-C3": "in words, the gate turns at p_cot = 1/3",
    "Q7-C3-below": "in words, greedy answers are short and at chance below it",
    "Q7-C3-above": "in words, greedy answers are long and right above it",
    "Q7-C4": "in words, next-token prediction on as many sequences stays short and at "
    "chance",
    "Q7-C7": "in words, a STaR round maps the long share p to 2p / (1 + p)",
    "Q7-short": "the short answer in words is not learnable within the budget",
}  # of the paper's public reviews

TEXT = {
    "T1": "after fine-tuning greedy answers are short, and no more accurate than "
    "short answers are",
    "T2": "after fine-tuning P(long) at temperature 1 is p_cot",
    "T3": "GRPO makes greedy answers long and lifts their accuracy within few updates",
    "T4": "fine-tuning on as many questions, p_cot = 0 and a random reward do not",
}

SECTIONS = {
    "The paper": PARITY | MULTIPLICATION,
    "Theory": LINEAR | BEYOND,
    "Questions the paper left open": QUESTIONS,
    "Text": TEXT,
}
LEGEND = {id: text for section in SECTIONS.values() for id, text in section.items()}
