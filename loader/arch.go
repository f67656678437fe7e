package loader

import "strings"

// traits are what llama.cpp's loading or graph of an architecture takes for
// granted about a file, and ends the process over where it is not so.
type traits uint16

const (
	known       traits = 1 << iota
	fullRotary         // rope.dimension_count is the heads' whole width
	noRotary           // positions do not enter by rotation
	multiRotary        // rope.dimension_sections says which dimensions rotate by what
	latent             // keys and values pass a narrow layer; head widths have more than one meaning
	everyHead          // as many heads have keys and values as there are
	sliding            // some layers always attend within attention.sliding_window
	experts            // every model of it has experts
	gated              // expert_gating_func has no default
	stateSpace         // blocks with an ssm state, alone or among others
	halfInner          // of these, with ssm.inner_size twice the width
	groups             // of these, with ssm.group_count
	linear             // RWKV: blocks with a wkv state
	shortConv          // blocks with a short convolution
	mixed              // of these, those with attention in some blocks only: those with head_count_kv
)

// recurrent are the architectures in which not every block has attention, and
// tensors named alike have other shapes.
const recurrent = stateSpace | linear | shortConv

// architectures are those of llama.cpp that generate text token after token.
var architectures = func() map[string]traits {
	table := map[string]traits{}
	for t, names := range map[traits]string{
		known: `afmoe bailingmoe2 bitnet bloom chatglm cohere2 command-r gemma gemma2 gemma3 gemma3n glm4 glm4moe
			gpt2 gptneox jais minimax-m2 mpt nemotron openelm phi2 phi3 phimoe qwen refact stablelm starcoder`,
		fullRotary: `apertus arcee arctic baichuan bailingmoe chameleon codeshell cogvlm dbrx deci deepseek dots1 ernie4_5
			ernie4_5-moe exaone exaone4 falcon gpt-oss granite granitemoe grok grovemoe hunyuan-dense hunyuan-moe internlm2
			llama llama4 minicpm mistral3 olmo olmo2 olmoe orion pangu-embedded plamo qwen2 qwen2moe qwen2vl qwen3
			qwen3moe qwen3vl qwen3vlmoe seed_oss smallthinker smollm3 solar starcoder2 xverse`,
		noRotary:    "bloom gpt2 jais jamba mpt nemotron_h nemotron_h_moe refact",
		multiRotary: "qwen2vl qwen3vl qwen3vlmoe",
		latent:      "deepseek2 minicpm3",
		everyHead:   "minicpm3 olmoe",
		sliding:     "afmoe cohere2 gemma2 gemma3n gpt-oss",
		experts:     "bailingmoe2 glm4moe gpt-oss grovemoe lfm2moe nemotron_h_moe qwen2moe qwen3moe qwen3next qwen3vlmoe smallthinker",
		gated:       "bailingmoe2 dots1 lfm2moe minimax-m2 smallthinker",
		stateSpace:  "falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe plamo2 qwen3next",
		halfInner:   "granitehybrid jamba mamba mamba2",
		groups:      "falcon-h1 granitehybrid mamba2 nemotron_h nemotron_h_moe qwen3next",
		linear:      "arwkv7 rwkv6 rwkv6qwen2 rwkv7",
		shortConv:   "lfm2 lfm2moe",
		mixed:       "granitehybrid jamba lfm2 lfm2moe nemotron_h nemotron_h_moe plamo2",
	} {
		for _, name := range strings.Fields(names) {
			table[name] |= known | t
		}
	}
	return table
}()

// windowPeriods are the architectures in which every so manieth layer sees all
// tokens and the others those within a window. llama.cpp asserts that there is a
// layer of either kind.
var windowPeriods = map[string]int64{
	"afmoe": 4, "cohere2": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "llama4": 4, "olmo2": 4, "smallthinker": 2,
}

// neededTensors are those that llama.cpp loads where they are there, but uses
// in any case. %d is each block; beside is a tensor without which they are not
// used, if it is not "".
var neededTensors = map[string][]struct{ name, beside string }{
	"falcon-h1":      {{"blk.%d.ssm_conv1d.bias", "blk.%d.ssm_conv1d.weight"}},
	"granitehybrid":  {{"blk.%d.ssm_conv1d.bias", "blk.%d.ssm_conv1d.weight"}},
	"nemotron_h":     {{"blk.%d.ssm_conv1d.bias", "blk.%d.ssm_conv1d.weight"}},
	"nemotron_h_moe": {{"blk.%d.ssm_conv1d.bias", "blk.%d.ssm_conv1d.weight"}},
	"phi2":           {{"blk.%d.attn_qkv.bias", "blk.%d.attn_qkv.weight"}},
	"phi3":           {{"blk.%d.attn_qkv.weight", ""}},
	"qwen2vl": {
		{"blk.%d.attn_q.bias", "blk.%d.attn_q.weight"}, {"blk.%d.attn_k.bias", "blk.%d.attn_k.weight"}, {"blk.%d.attn_v.bias", "blk.%d.attn_v.weight"},
	},
	"solar": {{"output.weight", ""}, {"bskcn_tv.weight", ""}},
}

// otherArchitectures are the rest of those that llama.cpp knows, with what
// they are instead.
var otherArchitectures = func() map[string]string {
	table := map[string]string{}
	for what, names := range map[string]string{
		"an embedding model, which writes no text":                           "bert gemma-embedding jina-bert-v2 jina-bert-v3 neo-bert nomic-bert nomic-bert-moe t5encoder",
		"an encoder with a decoder, whose text is not one sequence":          "t5",
		"a diffusion model, which does not write its text token after token": "dream llada llada-moe rnd1",
		"a part for pictures or sound, not a language model":                 "clip wavtokenizer-dec",
		"an architecture for which this llama.cpp has no graph that works":   "gptj plm",
	} {
		for _, name := range strings.Fields(names) {
			table[name] = what
		}
	}
	return table
}()

// fileTypes are llama.cpp's names of general.file_type.
var fileTypes = map[uint32]string{
	0: "all F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K - Medium", 11: "Q3_K - Small",
	12: "Q3_K - Medium", 13: "Q3_K - Large", 14: "Q4_K - Small", 15: "Q4_K - Medium", 16: "Q5_K - Small", 17: "Q5_K - Medium",
	18: "Q6_K", 19: "IQ2_XXS - 2.0625 bpw", 20: "IQ2_XS - 2.3125 bpw", 21: "Q2_K - Small", 22: "IQ3_XS - 3.3 bpw",
	23: "IQ3_XXS - 3.0625 bpw", 24: "IQ1_S - 1.5625 bpw", 25: "IQ4_NL - 4.5 bpw", 26: "IQ3_S - 3.4375 bpw",
	27: "IQ3_S mix - 3.66 bpw", 28: "IQ2_S - 2.5 bpw", 29: "IQ2_M - 2.7 bpw", 30: "IQ4_XS - 4.25 bpw", 31: "IQ1_M - 1.75 bpw",
	32: "BF16", 36: "TQ1_0 - 1.69 bpw ternary", 37: "TQ2_0 - 2.06 bpw ternary", 38: "MXFP4 MoE",
}
