package loader

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// smallModel is a llama model of 2 blocks, with 4 heads, 2 of them with keys
// and values, and 16 tokens.
func smallModel() ([]KV, []TensorData) {
	tokens := make([]string, 16)
	for i := range tokens {
		tokens[i] = fmt.Sprintf("token%d", i)
	}
	kv := []KV{
		{"general.architecture", "llama"},
		{"general.type", "model"},
		{"general.name", "small"},
		{"general.file_type", uint32(7)},
		{"llama.context_length", uint32(64)},
		{"llama.embedding_length", uint32(32)},
		{"llama.block_count", uint32(2)},
		{"llama.feed_forward_length", uint32(64)},
		{"llama.attention.head_count", uint32(4)},
		{"llama.attention.head_count_kv", uint32(2)},
		{"llama.attention.layer_norm_rms_epsilon", float32(1e-5)},
		{"llama.rope.dimension_count", uint32(8)},
		{"llama.rope.freq_base", float32(10000)},
		{"tokenizer.ggml.model", "llama"},
		{"tokenizer.ggml.tokens", tokens},
		{"tokenizer.ggml.scores", make([]float32, 16)},
		{"tokenizer.ggml.token_type", slices.Repeat([]int32{1}, 16)},
		{"tokenizer.ggml.bos_token_id", uint32(1)},
		{"tokenizer.ggml.eos_token_id", uint32(2)},
		{"tokenizer.chat_template", "{{ messages }}"},
	}
	var tensors []TensorData
	add := func(name string, t TensorType, shape ...int64) {
		tensors = append(tensors, TensorData{name, t, shape, nil})
	}
	add("token_embd.weight", Q8_0, 32, 16)
	add("output_norm.weight", F32, 32)
	add("output.weight", F16, 32, 16)
	for i := range 2 {
		block := fmt.Sprintf("blk.%d.", i)
		add(block+"attn_norm.weight", F32, 32)
		add(block+"attn_q.weight", Q8_0, 32, 32)
		add(block+"attn_k.weight", Q8_0, 32, 16)
		add(block+"attn_v.weight", Q8_0, 32, 16)
		add(block+"attn_output.weight", Q8_0, 32, 32)
		add(block+"ffn_norm.weight", F32, 32)
		add(block+"ffn_gate.weight", Q8_0, 32, 64)
		add(block+"ffn_up.weight", Q8_0, 32, 64)
		add(block+"ffn_down.weight", Q8_0, 64, 32)
	}
	return kv, tensors
}

// checkEdited checks the small model after some edits.
func checkEdited(t testing.TB, options []CheckOption, edits ...edit) (*ModelFile, error) {
	t.Helper()
	kv, tensors := smallModel()
	g, err := parse(edited(t, kv, tensors, edits...))
	require.NoError(t, err)
	return g.model(options...)
}

// all makes several edits one.
func all(edits ...edit) edit {
	return func(kv *[]KV, tensors *[]TensorData) {
		for _, e := range edits {
			e(kv, tensors)
		}
	}
}

// rename gives the small model another architecture.
func rename(arch string, edits ...edit) edit {
	return func(kv *[]KV, tensors *[]TensorData) {
		for i, e := range *kv {
			if rest, ok := strings.CutPrefix(e.Key, "llama."); ok {
				(*kv)[i].Key = arch + "." + rest
			}
		}
		all(append([]edit{set("general.architecture", arch)}, edits...)...)(kv, tensors)
	}
}

func TestDemoModel(t *testing.T) {
	m, err := CheckModel(demoModel)
	require.NoError(t, err)
	require.Equal(t, []string{demoModel}, m.Paths)
	require.Equal(t, "gemma2", m.Arch)
	require.Equal(t, "tiny-gemma2-en-es", m.Name)
	require.Equal(t, "Q8_0", m.Quantization)
	require.Equal(t, []int{256, 6, 4096, 256}, []int{m.Embd, m.Layers, m.Vocab, m.TrainContext})
	require.Empty(t, m.ChatTemplate)
	require.Len(t, m.Tensors, 68)
	require.Equal(t, KV{"general.architecture", "gemma2"}, m.Metadata[0])
	total := TypeCount{}
	for _, c := range m.Types {
		total.Tensors += c.Tensors
		total.Bytes += c.Bytes
	}
	require.Equal(t, TypeCount{Tensors: 68, Bytes: m.TotalBytes}, total)
	info, err := os.Stat(demoModel)
	require.NoError(t, err)
	require.Less(t, m.TotalBytes, info.Size())
	require.Greater(t, m.TotalBytes, info.Size()-info.Size()/50, "the file is mostly tensors")
}

func TestSmallModel(t *testing.T) {
	m, err := checkEdited(t, nil)
	require.NoError(t, err)
	require.Equal(t, "small", m.Name)
	require.Equal(t, "{{ messages }}", m.ChatTemplate)
	require.Equal(t, []TypeCount{
		{Q8_0, 15, 34 * (16 + 2*(32+16+16+32+64+64+2*32))}, {F16, 1, 2 * 32 * 16}, {F32, 5, 4 * 5 * 32},
	}, m.Types)

	m, err = checkEdited(t, nil, drop("general.name"), drop("general.file_type"), drop("tokenizer.chat_template"))
	require.NoError(t, err)
	require.Equal(t, "model", m.Name)
	require.Equal(t, "Q8_0", m.Quantization)
	require.Empty(t, m.ChatTemplate)
}

// What real files have, too.
func TestModelsThatAreRight(t *testing.T) {
	perLayer := func(values any) edit { return set("llama.attention.head_count_kv", values) }
	for name, e := range map[string]edit{
		"head counts of each layer":     all(perLayer([]int32{2, 4}), tensor("blk.1.attn_k.weight", F32, 32, 32), tensor("blk.1.attn_v.weight", F32, 32, 32)),
		"a layer without attention":     all(perLayer([]uint32{2, 0}), dropTensor("blk.1.attn_k.weight")),
		"no head_count_kv":              all(drop("llama.attention.head_count_kv"), tensor("blk.0.attn_k.weight", F32, 32, 32), tensor("blk.0.attn_v.weight", F32, 32, 32), tensor("blk.1.attn_k.weight", F32, 32, 32), tensor("blk.1.attn_v.weight", F32, 32, 32)),
		"no dimension_count":            drop("llama.rope.dimension_count"),
		"no output.weight":              dropTensor("output.weight"),
		"a bias":                        all(tensor("blk.0.attn_q.bias", F32, 32), tensor("blk.0.attn_k.bias", F32, 16)),
		"a norm with a bias":            tensor("output_norm.bias", F32, 32),
		"rotation factors":              tensor("rope_freqs.weight", F32, 4),
		"no scores":                     drop("tokenizer.ggml.scores"),
		"no token types":                drop("tokenizer.ggml.token_type"),
		"empty tokens":                  set("tokenizer.ggml.tokens", []string{"a", "", "", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"}),
		"padding that is not a token":   set("tokenizer.ggml.padding_token_id", uint32(16)),
		"a larger alignment":            set("general.alignment", uint32(128)),
		"no type of file":               drop("general.type"),
		"a scale":                       set("llama.rope.scaling.type", "yarn"),
		"experts":                       all(set("llama.expert_count", uint32(4)), set("llama.expert_used_count", uint32(2)), tensor("blk.0.ffn_gate_inp.weight", F32, 32, 4), tensor("blk.0.ffn_up_exps.weight", Q8_0, 32, 64, 4)),
		"experts in groups":             all(set("llama.expert_count", uint32(4)), set("llama.expert_used_count", uint32(2)), set("llama.expert_group_count", uint32(2)), set("llama.expert_group_used_count", uint32(1))),
		"one group of experts":          all(set("llama.expert_count", uint32(4)), set("llama.expert_used_count", uint32(4)), set("llama.expert_group_count", uint32(1))),
		"wider heads than their share":  all(set("llama.attention.key_length", uint32(16)), set("llama.attention.value_length", uint32(16)), set("llama.rope.dimension_count", uint32(16)), tensor("blk.0.attn_q.weight", F32, 32, 64), tensor("blk.0.attn_k.weight", F32, 32, 32), tensor("blk.0.attn_v.weight", F32, 32, 32), tensor("blk.0.attn_output.weight", F32, 64, 32), tensor("blk.1.attn_q.weight", F32, 32, 64), tensor("blk.1.attn_k.weight", F32, 32, 32), tensor("blk.1.attn_v.weight", F32, 32, 32), tensor("blk.1.attn_output.weight", F32, 64, 32)),
		"a tokenizer of kind gpt2":      all(set("tokenizer.ggml.model", "gpt2"), set("tokenizer.ggml.merges", []string{"a b"})),
		"gemma2, its window left out":   rename("gemma2"),
		"qwen2vl":                       rename("qwen2vl", set("qwen2vl.rope.dimension_sections", []int32{2, 1, 1, 0}), dropTensor("blk.0.attn_q.weight"), dropTensor("blk.0.attn_k.weight"), dropTensor("blk.0.attn_v.weight"), dropTensor("blk.1.attn_q.weight"), dropTensor("blk.1.attn_k.weight"), dropTensor("blk.1.attn_v.weight")),
		"gemma3 without a window":       rename("gemma3"),
		"phi3, half of a head rotating": rename("phi3", set("phi3.rope.dimension_count", uint32(4)), tensor("blk.0.attn_qkv.weight", F32, 32, 64), tensor("blk.1.attn_qkv.weight", F32, 32, 64)),
		"gpt2 without rotation":         rename("gpt2", drop("gpt2.rope.dimension_count"), drop("gpt2.rope.freq_base")),
		"mamba": rename("mamba", set("mamba.attention.head_count", uint32(0)), drop("mamba.attention.head_count_kv"), set("mamba.ssm.conv_kernel", uint32(4)),
			set("mamba.ssm.inner_size", uint32(64)), set("mamba.ssm.state_size", uint32(16)), set("mamba.ssm.time_step_rank", uint32(2)), tensor("blk.0.ssm_a", F32, 16, 64)),
		"rwkv7": rename("rwkv7", set("rwkv7.attention.head_count", uint32(0)), drop("rwkv7.attention.head_count_kv"), set("rwkv7.wkv.head_size", uint32(8)), set("tokenizer.ggml.model", "rwkv")),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := checkEdited(t, nil, e)
			require.NoError(t, err)
		})
	}
}

func TestModelsThatAreWrong(t *testing.T) {
	texts := func(change func([]string) []string) edit {
		return func(kv *[]KV, tensors *[]TensorData) {
			tokens := make([]string, 16)
			for i := range tokens {
				tokens[i] = fmt.Sprint("t", i)
			}
			set("tokenizer.ggml.tokens", change(tokens))(kv, tensors)
		}
	}
	bpe := all(set("tokenizer.ggml.model", "gpt2"), set("tokenizer.ggml.merges", []string{}))
	experts := all(set("llama.expert_count", uint32(4)), set("llama.expert_used_count", uint32(2)))
	recurrent := func(arch string, edits ...edit) edit {
		sizes := []edit{set(arch+".attention.head_count", uint32(0))}
		for name, n := range map[string]uint32{"conv_kernel": 4, "inner_size": 64, "state_size": 16, "time_step_rank": 2, "group_count": 2} {
			sizes = append(sizes, set(arch+".ssm."+name, n))
		}
		return rename(arch, append(sizes, edits...)...)
	}
	for says, e := range map[string]edit{
		// not a model
		"this is a steering file, expected a model":                        set("general.architecture", "llsteer"),
		"this is a llama.cpp control vector, expected a model":             set("general.architecture", "controlvector"),
		`holds no model: its general.type is "adapter"`:                    set("general.type", "adapter"),
		`key "general.type" is of type bool, expected string`:              set("general.type", true),
		`key "general.architecture" is missing, expected string`:           drop("general.architecture"),
		`its architecture is "gemma9", which this llama.cpp does not know`: set("general.architecture", "gemma9"),
		`its architecture is "bert": an embedding model`:                   set("general.architecture", "bert"),
		`its architecture is "t5": an encoder with a decoder`:              set("general.architecture", "t5"),
		`its architecture is "dream": a diffusion model`:                   set("general.architecture", "dream"),
		`its architecture is "clip": a part for pictures`:                  set("general.architecture", "clip"),
		"general.alignment is 16, expected a multiple of 32":               set("general.alignment", uint32(16)),

		// hyperparameters
		`key "llama.block_count" is missing, expected u32`:                                                           drop("llama.block_count"),
		`key "llama.block_count" is 0, expected 1 to 512`:                                                            set("llama.block_count", uint32(0)),
		`key "llama.block_count" is 513, expected 1 to 512`:                                                          set("llama.block_count", uint32(513)),
		`key "llama.block_count" is of type i32, expected u32`:                                                       set("llama.block_count", int32(2)),
		`key "llama.embedding_length" is 0, expected 1 to`:                                                           set("llama.embedding_length", uint32(0)),
		`key "llama.embedding_length" is 4294967295, expected 1 to`:                                                  set("llama.embedding_length", uint32(math.MaxUint32)),
		`key "llama.context_length" is 0`:                                                                            set("llama.context_length", uint32(0)),
		`key "llama.context_length" is 2147483648`:                                                                   set("llama.context_length", uint32(1<<31)),
		`key "llama.context_length" is of type string, expected u32`:                                                 set("llama.context_length", "64"),
		`key "llama.attention.head_count" is missing or 0`:                                                           drop("llama.attention.head_count"),
		`key "llama.attention.head_count" is of type f32, expected u32 or an array`:                                  set("llama.attention.head_count", float32(4)),
		`key "llama.attention.head_count" is of type array of f32`:                                                   set("llama.attention.head_count", []float32{4, 4}),
		`key "llama.attention.head_count" has 3 elements, expected one for each of 2`:                                set("llama.attention.head_count", []uint32{4, 4, 4}),
		`key "llama.attention.head_count" is -4 for layer 1`:                                                         set("llama.attention.head_count", []int32{4, -4}),
		`key "llama.attention.head_count" is 65536 for layer 0`:                                                      set("llama.attention.head_count", uint32(1<<16)),
		"layer 0 has 4 heads and 3 of keys and values, expected a divisor":                                           set("llama.attention.head_count_kv", uint32(3)),
		`its width 32 is not a multiple of its 5 heads, and it has no key "llama.attention.key_length"`:              all(set("llama.attention.head_count", uint32(5)), drop("llama.attention.head_count_kv")),
		`key "llama.attention.key_length" is 0`:                                                                      set("llama.attention.key_length", uint32(0)),
		"heads have keys of 16 and values of 8 numbers":                                                              set("llama.attention.key_length", uint32(16)),
		`key "llama.feed_forward_length" has 1 elements, expected one for each of 2`:                                 set("llama.feed_forward_length", []int32{64}),
		`key "llama.feed_forward_length" is of type string`:                                                          set("llama.feed_forward_length", "64"),
		`key "llama.attention.layer_norm_rms_epsilon" is NaN`:                                                        set("llama.attention.layer_norm_rms_epsilon", float32(math.NaN())),
		`key "llama.attention.layer_norm_rms_epsilon" is -1`:                                                         set("llama.attention.layer_norm_rms_epsilon", float32(-1)),
		`key "llama.attention.layer_norm_rms_epsilon" is of type f64, expected f32`:                                  set("llama.attention.layer_norm_rms_epsilon", 1e-5),
		`key "llama.rope.freq_base" is 0, expected a positive number`:                                                set("llama.rope.freq_base", float32(0)),
		`key "llama.logit_scale" is +Inf, expected a finite number`:                                                  set("llama.logit_scale", float32(math.Inf(1))),
		`key "llama.rope.dimension_count" is 10, more than the 8 numbers of a head`:                                  set("llama.rope.dimension_count", uint32(10)),
		`key "llama.rope.dimension_count" is 4, expected the 8 numbers of a head`:                                    set("llama.rope.dimension_count", uint32(4)),
		`7 dimensions rotate, expected an even number`:                                                               set("llama.rope.dimension_count", uint32(7)),
		`key "llama.rope.scaling.type" is "new", expected none, linear, yarn or longrope`:                            set("llama.rope.scaling.type", "new"),
		`key "llama.rope.dimension_sections" is of type array of f32`:                                                set("llama.rope.dimension_sections", []float32{1, 1, 1, 1}),
		`key "qwen2vl.rope.dimension_sections" is missing`:                                                           rename("qwen2vl"),
		`key "qwen2vl.rope.dimension_sections" is [0 0 0 0], expected 4 numbers, of which the first is positive`:     rename("qwen2vl", set("qwen2vl.rope.dimension_sections", []int32{0, 0, 0, 0})),
		`key "qwen2vl.rope.dimension_sections" is [1 1 1]`:                                                           rename("qwen2vl", set("qwen2vl.rope.dimension_sections", []uint32{1, 1, 1})),
		`key "qwen2vl.rope.dimension_sections" is [1 -1 1 1]`:                                                        rename("qwen2vl", set("qwen2vl.rope.dimension_sections", []int32{1, -1, 1, 1})),
		`key "gemma2.attention.sliding_window" is 0, expected 1 to`:                                                  rename("gemma2", set("gemma2.attention.sliding_window", uint32(0))),
		`key "gemma2.attention.sliding_window" is 2147483648`:                                                        rename("gemma2", set("gemma2.attention.sliding_window", uint32(1<<31))),
		`key "cohere2.attention.sliding_window" is missing`:                                                          rename("cohere2"),
		`key "llama.classifier.output_labels" is of type array of u32`:                                               set("llama.classifier.output_labels", []uint32{1}),
		`key "xielu.alpha_n" is of type array of i32`:                                                                set("xielu.alpha_n", []int32{1, 1}),
		`key "llama.attention.block_skip_connection.3" is of type array of string`:                                   set("llama.attention.block_skip_connection.3", []string{"a", "b"}),
		`key "llama.expert_count" is 513, expected 0 to 512`:                                                         set("llama.expert_count", uint32(513)),
		`key "llama.expert_used_count" is missing`:                                                                   set("llama.expert_count", uint32(4)),
		`key "llama.expert_used_count" is 5, expected 1 to 4`:                                                        all(experts, set("llama.expert_used_count", uint32(5))),
		`key "llama.expert_used_count" is 0, expected 1 to 4`:                                                        all(experts, set("llama.expert_used_count", uint32(0))),
		`key "llama.expert_used_count" is 1, expected 0 to 0`:                                                        set("llama.expert_used_count", uint32(1)),
		`key "llama.expert_group_count" is 4, expected 0 to 3`:                                                       all(experts, set("llama.expert_group_count", uint32(4))),
		`4 experts do not divide into 3 groups`:                                                                      all(experts, set("llama.expert_group_count", uint32(3))),
		`key "llama.expert_group_used_count" is 2, expected 1 to 1`:                                                  all(experts, set("llama.expert_group_count", uint32(2)), set("llama.expert_group_used_count", uint32(2))),
		`key "llama.expert_gating_func" is 4, expected 0 to 3`:                                                       all(experts, set("llama.expert_gating_func", uint32(4))),
		`key "qwen3moe.expert_count" is missing`:                                                                     rename("qwen3moe"),
		`key "qwen3moe.expert_count" is 0, expected 1 to 512`:                                                        rename("qwen3moe", set("qwen3moe.expert_count", uint32(0))),
		`key "dots1.expert_gating_func" is missing`:                                                                  rename("dots1", set("dots1.expert_count", uint32(4)), set("dots1.expert_used_count", uint32(2))),
		`key "baichuan.block_count" is 2, expected 32 or 40`:                                                         rename("baichuan"),
		`key "ernie4_5-moe.interleave_moe_layer_step" is missing`:                                                    rename("ernie4_5-moe"),
		`key "glm4moe.nextn_predict_layers" is 2, expected 0 to 1`:                                                   rename("glm4moe", set("glm4moe.expert_count", uint32(4)), set("glm4moe.expert_used_count", uint32(2)), set("glm4moe.nextn_predict_layers", uint32(2))),
		`key "deepseek2.attention.temperature_length" is missing`:                                                    rename("deepseek2", drop("deepseek2.attention.head_count_kv"), set("deepseek2.rope.dimension_count", uint32(4)), set("deepseek2.attention.temperature_scale", float32(1))),
		`[2 2] heads of [4 4] have keys and values, expected all of them without deepseek2.attention.key_length_mla`: rename("deepseek2", set("deepseek2.rope.dimension_count", uint32(4))),
		`layer 0 caches 2 heads with keys of 8 and values of 8 numbers, expected 1 of 20 and 16`: rename("deepseek2", set("deepseek2.rope.dimension_count", uint32(4)),
			set("deepseek2.attention.key_length_mla", uint32(12)), set("deepseek2.attention.value_length_mla", uint32(8)), set("deepseek2.attention.kv_lora_rank", uint32(16))),
		`[2 2] heads of [4 4] have keys and values, expected all of them in models of architecture olmoe`:            rename("olmoe"),
		`key "nemotron_h.expert_feed_forward_length" is missing`:                                                     recurrent("nemotron_h", set("nemotron_h.attention.head_count_kv", []uint32{0, 2})),
		`key "nemotron_h.attention.head_count_kv" is [2 2], expected 0 for some layers`:                              recurrent("nemotron_h"),
		`key "jamba.attention.head_count_kv" is [0 0], expected 0 for some layers`:                                   recurrent("jamba", set("jamba.attention.head_count_kv", []uint32{0, 0})),
		`key "qwen3next.block_count" is 2, expected 4 or more`:                                                       recurrent("qwen3next", set("qwen3next.ssm.inner_size", uint32(32)), set("qwen3next.expert_count", uint32(4)), set("qwen3next.expert_used_count", uint32(2))),
		`tensor "blk.0.shortconv.conv.weight" has the shape [3 32 2], too many dimensions for what is a convolution`: rename("lfm2", set("lfm2.shortconv.l_cache", uint32(3)), set("lfm2.attention.head_count_kv", []uint32{0, 2}), tensor("blk.0.shortconv.conv.weight", F32, 3, 32, 2)),
		`key "plamo2.ssm.group_count" is 2, expected 0 to 0`:                                                         recurrent("plamo2", set("plamo2.attention.head_count_kv", []uint32{0, 2})),
		"expected 8196 or more in models of architecture chameleon":                                                  rename("chameleon"),
		`key "qwen3next.ssm.inner_size" is 64, expected ssm.time_step_rank times ssm.state_size, 32`:                 recurrent("qwen3next", set("qwen3next.block_count", uint32(4)), set("qwen3next.expert_count", uint32(4)), set("qwen3next.expert_used_count", uint32(2))),
		`key "rwkv7.wkv.head_size" is 12, expected a divisor of the width 32`:                                        rename("rwkv7", set("rwkv7.wkv.head_size", uint32(12))),
		`tensor "blk.0.time_mix_lerp_fused.weight" has the shape [32 1 1 6], expected 5 in its fourth`:               rename("rwkv7", set("rwkv7.attention.head_count", uint32(0)), set("rwkv7.wkv.head_size", uint32(8)), tensor("blk.0.time_mix_lerp_fused.weight", F32, 32, 1, 1, 6)),
		`tensor "blk.1.time_mix_w0.weight" is of type F16, expected F32`:                                             rename("rwkv7", set("rwkv7.attention.head_count", uint32(0)), set("rwkv7.wkv.head_size", uint32(8)), tensor("blk.1.time_mix_w0.weight", F16, 32)),
		`tensor "blk.0.ssm_conv1d.weight" is of type F16, expected F32 for what is a convolution`:                    recurrent("mamba2", tensor("blk.0.ssm_conv1d.weight", F16, 4, 64)),
		"a head has keys of 1 and values of 1 numbers, expected 2 or more":                                           rename("gpt2", set("gpt2.attention.head_count", uint32(32))),
		`key "qwen2vl.rope.dimension_sections" is [4 4 4 0], more than the 8 numbers of a head`:                      rename("qwen2vl", set("qwen2vl.rope.dimension_sections", []int32{4, 4, 4, 0})),
		"block 0 has neither of the tensors time_mix_lerp_fused.weight and":                                          rename("rwkv6", set("rwkv6.attention.head_count", uint32(0)), set("rwkv6.wkv.head_size", uint32(8))),
		`tensor "blk.1.ssm_conv1d.bias" is missing, expected in models of architecture falcon-h1`:                    recurrent("falcon-h1", tensor("blk.1.ssm_conv1d.weight", F32, 4, 64)),
		`tensor "output.weight" is missing, expected in models of architecture solar`:                                rename("solar", dropTensor("output.weight")),
		`fewer than the 8 numbers of a head rotate in models of architecture deepseek2`:                              rename("deepseek2"),
		`key "gemma3.block_count" is 2, expected 6 or more`:                                                          rename("gemma3", set("gemma3.attention.sliding_window", uint32(8))),
		`key "llama4.block_count" is 2, expected 4 or more`:                                                          rename("llama4"),
		`tensor "blk.0.attn_qkv.bias" is missing, expected in models of architecture phi2`:                           rename("phi2", tensor("blk.0.attn_qkv.weight", F32, 32, 64)),
		`tensor "blk.1.attn_v.bias" is missing, expected in models`: rename("qwen2vl", set("qwen2vl.rope.dimension_sections", []int32{2, 1, 1, 0}),
			tensor("blk.0.attn_q.bias", F32, 32), tensor("blk.0.attn_k.bias", F32, 16), tensor("blk.0.attn_v.bias", F32, 16), tensor("blk.1.attn_q.bias", F32, 32), tensor("blk.1.attn_k.bias", F32, 16)),
		`tensor "blk.0.attn_qkv.weight" is missing, expected in models of architecture phi3`: rename("phi3"),
		`tensor "bskcn_tv.weight" is missing`:                                                rename("solar"),
		`key "mamba.ssm.inner_size" is 65, expected twice the width 32`:                      recurrent("mamba", set("mamba.ssm.inner_size", uint32(65))),
		`key "mamba.ssm.conv_kernel" is missing`:                                             recurrent("mamba", drop("mamba.ssm.conv_kernel")),
		`key "falcon-h1.ssm.time_step_rank" is 0`:                                            recurrent("falcon-h1", set("falcon-h1.ssm.time_step_rank", uint32(0))),
		`falcon-h1.ssm.inner_size is 64, ssm.time_step_rank is 2 and ssm.group_count is 3`:   recurrent("falcon-h1", set("falcon-h1.ssm.group_count", uint32(3))),
		`key "rwkv7.wkv.head_size" is 0`:                                                     rename("rwkv7", set("rwkv7.wkv.head_size", uint32(0))),
		`key "rwkv6.token_shift_count" is 1, expected 2`:                                     rename("rwkv6", set("rwkv6.wkv.head_size", uint32(8)), set("rwkv6.token_shift_count", uint32(1))),
		`key "arwkv7.token_shift_count" is 2, expected 1`:                                    rename("arwkv7", set("arwkv7.wkv.head_size", uint32(8)), set("arwkv7.token_shift_count", uint32(2))),
		`key "lfm2.shortconv.l_cache" is 1, expected 2 to`:                                   rename("lfm2", set("lfm2.shortconv.l_cache", uint32(1)), set("lfm2.attention.head_count_kv", []uint32{0, 2})),

		// tensors
		`tensor "token_embd.weight" is missing among 20 tensors`:                                                                              dropTensor("token_embd.weight"),
		`tensor "token_embd.weight" has the shape [64 16], expected [32 any] for llama.embedding_length = 32`:                                 tensor("token_embd.weight", F32, 64, 16),
		`tensor "token_embd.weight" has the shape [32 4 4], too many dimensions for what is looked up`:                                        tensor("token_embd.weight", F32, 32, 4, 4),
		`tensor "output.weight" has the shape [32 17], expected [32 16]`:                                                                      tensor("output.weight", F32, 32, 17),
		`tensor "output_norm.weight" has the shape [31], expected [32]`:                                                                       tensor("output_norm.weight", F32, 31),
		`tensor "output_norm.weight" is of type F16, expected F32 for what is added or multiplied`:                                            tensor("output_norm.weight", F16, 32),
		`tensor "blk.0.attn_q.weight" is of type I32, in which ggml computes`:                                                                 tensor("blk.0.attn_q.weight", 26, 32, 32),
		`tensor "blk.0.attn_q.weight" is of type Q8_1`:                                                                                        tensor("blk.0.attn_q.weight", 9, 32, 32),
		`tensor "blk.0.ffn_gate_inp_shexp.weight" is of type Q8_0, expected F32 for one dimension`:                                            tensor("blk.0.ffn_gate_inp_shexp.weight", Q8_0, 32),
		`tensor "rope_freqs.weight" is of type BF16, expected F32`:                                                                            tensor("rope_freqs.weight", BF16, 4),
		`tensor "blk.2.attn_q.weight" belongs to block 2, but llama.block_count is 2`:                                                         tensor("blk.2.attn_q.weight", F32, 32, 32),
		`tensor "blk.99999999999999999999.x" belongs to block 99999999999999999999`:                                                           tensor("blk.99999999999999999999.x", F32, 1),
		`tensor "blk.0.attn_q.bias" has the shape [31], expected [32] beside "blk.0.attn_q.weight" of shape [32 32]`:                          tensor("blk.0.attn_q.bias", F32, 31),
		`tensor "blk.0.attn_norm.bias" has the shape [64], expected [32]`:                                                                     tensor("blk.0.attn_norm.bias", F32, 64),
		`tensor "blk.1.attn_q.weight" has the shape [32 64], expected [32 32] for 4 heads of 8, 2 of them with keys and values, and width 32`: tensor("blk.1.attn_q.weight", F32, 32, 64),
		`tensor "blk.0.attn_k.weight" has the shape [32 32], expected [32 16]`:                                                                tensor("blk.0.attn_k.weight", F32, 32, 32),
		`tensor "blk.0.attn_v.weight" has the shape [32 8], expected [32 16]`:                                                                 tensor("blk.0.attn_v.weight", F32, 32, 8),
		`tensor "blk.0.attn_output.weight" has the shape [32 64], expected [32 32]`:                                                           tensor("blk.0.attn_output.weight", F32, 32, 64),
		`tensor "blk.0.attn_qkv.weight" has the shape [32 96], expected [32 64]`:                                                              tensor("blk.0.attn_qkv.weight", F32, 32, 96),
		`tensor "blk.0.ffn_up_exps.weight" is of experts, but llama.expert_count is missing or 0`:                                             tensor("blk.0.ffn_up_exps.weight", F32, 32, 64, 4),
		`tensor "blk.0.ffn_up_exps.weight" has the shape [32 2 2 2], too many dimensions`:                                                     all(experts, tensor("blk.0.ffn_up_exps.weight", F32, 32, 2, 2, 2)),

		// tokenizer
		`this model has no tokenizer: key "tokenizer.ggml.model" is missing`:                                                drop("tokenizer.ggml.model"),
		`this model has no tokenizer: tokenizer.ggml.model is "none"`:                                                       set("tokenizer.ggml.model", "none"),
		`this model has no tokenizer: tokenizer.ggml.model is "no_vocab"`:                                                   set("tokenizer.ggml.model", "no_vocab"),
		`its tokenizer is "word", expected one of bert, gpt2, llama, plamo2, rwkv, t5`:                                      set("tokenizer.ggml.model", "word"),
		`key "tokenizer.ggml.model" is of type u32, expected string`:                                                        set("tokenizer.ggml.model", uint32(1)),
		`key "tokenizer.ggml.tokens" is missing, expected array of string`:                                                  drop("tokenizer.ggml.tokens"),
		`key "tokenizer.ggml.tokens" is of type array of u32, expected array of string`:                                     set("tokenizer.ggml.tokens", make([]uint32, 16)),
		`tokenizer.ggml.tokens has 15 tokens, but tensor "token_embd.weight" has 16 rows`:                                   texts(func(s []string) []string { return s[1:] }),
		`tokens 3 and 5 of tokenizer.ggml.tokens are both "t3"`:                                                             texts(func(s []string) []string { s[5] = s[3]; return s }),
		`tokens 4 and 6 of tokenizer.ggml.tokens are both "t4"`:                                                             texts(func(s []string) []string { s[6] = "t4\x00more"; return s }),
		`tokens 0 and 2 of tokenizer.ggml.tokens are both "[EMPTY_2]"`:                                                      texts(func(s []string) []string { s[0], s[2] = "[EMPTY_2]", "\x00"; return s }),
		`key "tokenizer.ggml.scores" has 15 elements, expected one for each of 16 tokens`:                                   set("tokenizer.ggml.scores", make([]float32, 15)),
		`key "tokenizer.ggml.scores" is of type array of f64, expected array of f32`:                                        set("tokenizer.ggml.scores", make([]float64, 16)),
		`key "tokenizer.ggml.scores" is not a number for token 0`:                                                           set("tokenizer.ggml.scores", slices.Repeat([]float32{float32(math.NaN())}, 16)),
		`key "tokenizer.ggml.scores" is of type string`:                                                                     set("tokenizer.ggml.scores", "1"),
		`key "tokenizer.ggml.token_type" has 17 elements`:                                                                   set("tokenizer.ggml.token_type", make([]int32, 17)),
		`key "tokenizer.ggml.token_type" is of type array of i8, expected array of i32`:                                     set("tokenizer.ggml.token_type", make([]int8, 16)),
		`key "tokenizer.ggml.bos_token_id" is 16, expected one of the tokens 0 to 15`:                                       set("tokenizer.ggml.bos_token_id", uint32(16)),
		`key "tokenizer.ggml.eos_token_id" is 4294967295, expected one of the tokens`:                                       set("tokenizer.ggml.eos_token_id", uint32(math.MaxUint32)),
		`key "tokenizer.ggml.eot_token_id" is of type i32, expected u32`:                                                    set("tokenizer.ggml.eot_token_id", int32(-1)),
		`key "tokenizer.ggml.merges" is missing, expected array of string`:                                                  set("tokenizer.ggml.model", "gpt2"),
		`key "tokenizer.ggml.merges" is of type string, expected array of string`:                                           all(bpe, set("tokenizer.ggml.merges", "a b")),
		`key "tokenizer.ggml.seperator_token_id" does not name a token, and 102, which tokenizers of kind "bert" have then`: all(set("tokenizer.ggml.model", "bert"), set("tokenizer.ggml.unknown_token_id", uint32(0))),
		"tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing":                                  all(bpe, set("tokenizer.ggml.pre", "glm4"), drop("tokenizer.ggml.bos_token_id"), set("tokenizer.ggml.add_bos_token", true)),
		`key "tokenizer.ggml.add_bos_token" is of type u8, expected bool`:                                                   set("tokenizer.ggml.add_bos_token", uint8(1)),
		`key "tokenizer.ggml.precompiled_charsmap" of 3 bytes is no table`:                                                  all(set("tokenizer.ggml.model", "t5"), set("tokenizer.ggml.precompiled_charsmap", []uint8{1, 0, 0})),
		`key "tokenizer.ggml.precompiled_charsmap" of 8 bytes is no table`:                                                  all(set("tokenizer.ggml.model", "t5"), set("tokenizer.ggml.precompiled_charsmap", []int8{4, 0, 0, 0, 1, 2, 3, 0})),
		`key "tokenizer.ggml.precompiled_charsmap" of 6 bytes is no table`:                                                  all(set("tokenizer.ggml.model", "t5"), set("tokenizer.ggml.precompiled_charsmap", []uint8{0, 0, 0, 0, 'a', 'b'})),
		`key "tokenizer.ggml.precompiled_charsmap" is of type string`:                                                       all(set("tokenizer.ggml.model", "t5"), set("tokenizer.ggml.precompiled_charsmap", "x")),
	} {
		t.Run(says, func(t *testing.T) {
			_, err := checkEdited(t, nil, e)
			requireInputError(t, err, "model.gguf: ", says)
		})
	}
}

func TestAllowNoTokenizer(t *testing.T) {
	allow := []CheckOption{AllowNoTokenizer}
	none := all(set("tokenizer.ggml.model", "none"), drop("tokenizer.ggml.tokens"))
	_, err := checkEdited(t, allow, none)
	requireInputError(t, err, `key "llama.vocab_size" is missing`)
	_, err = checkEdited(t, allow, none, set("llama.vocab_size", uint32(15)))
	requireInputError(t, err, `key "llama.vocab_size" is 15, but tensor "token_embd.weight" has 16 rows`)
	_, err = checkEdited(t, allow, none, set("llama.vocab_size", uint32(math.MaxUint32)))
	requireInputError(t, err, `key "llama.vocab_size" is 4294967295`)
	m, err := checkEdited(t, allow, none, set("llama.vocab_size", uint32(16)))
	require.NoError(t, err)
	require.Equal(t, 16, m.Vocab)
	_, err = checkEdited(t, allow, drop("tokenizer.ggml.model"))
	requireInputError(t, err, "this model has no tokenizer")
	_, err = checkEdited(t, allow, set("tokenizer.ggml.scores", make([]float32, 3)))
	requireInputError(t, err, "scores")
}

// splitModel writes the small model in parts of so many tensors, with an edit
// for each part, and returns the paths.
func splitModel(t *testing.T, sizes []int, edits map[int]edit) []string {
	t.Helper()
	dir := t.TempDir()
	kv, tensors := smallModel()
	total := len(tensors)
	var paths []string
	for i, n := range sizes {
		if i > 0 {
			kv = nil
		}
		part := append(slices.Clone(kv),
			KV{"split.no", uint16(i)}, KV{"split.count", uint16(len(sizes))}, KV{"split.tensors.count", int32(total)})
		b := edited(t, part, tensors[:n], func(kv *[]KV, tensors *[]TensorData) {
			if e := edits[i]; e != nil {
				e(kv, tensors)
			}
		})
		tensors = tensors[n:]
		path := filepath.Join(dir, fmt.Sprintf("m-%05d-of-%05d.gguf", i+1, len(sizes)))
		require.NoError(t, os.WriteFile(path, b, 0o666))
		paths = append(paths, path)
	}
	return paths
}

func TestSplitModels(t *testing.T) {
	sizes := []int{3, 9, 9}
	paths := splitModel(t, sizes, nil)
	m, err := CheckModel(paths[0])
	require.NoError(t, err)
	require.Equal(t, paths, m.Paths)
	require.Len(t, m.Tensors, 21)

	_, err = CheckModel(paths[1])
	requireInputError(t, err, "this is part 2 of 3 of a split model", "give the first part: "+paths[0])

	other := filepath.Join(filepath.Dir(paths[0]), "other.gguf")
	require.NoError(t, os.Rename(paths[0], other))
	_, err = CheckModel(other)
	requireInputError(t, err, "this is the first of 3 parts of a split model, and its name does not end in -00001-of-00003.gguf")
	require.NoError(t, os.Rename(other, paths[0]))

	require.NoError(t, os.Truncate(paths[2], 4000))
	_, err = CheckModel(paths[0])
	requireInputError(t, err, paths[2], "truncated?")
	require.NoError(t, os.Remove(paths[2]))
	_, err = CheckModel(paths[0])
	requireInputError(t, err, paths[2]+": cannot read this file: no such file or directory")
	require.NoError(t, os.WriteFile(paths[2], []byte("GGML"), 0o666))
	_, err = CheckModel(paths[0])
	requireInputError(t, err, paths[2]+": not a GGUF file")

	for says, edits := range map[string]map[int]edit{
		`key "split.count" is of type u32, expected u16`:                  {0: set("split.count", uint32(3))},
		`key "split.no" is missing, expected u16`:                         {0: drop("split.no")},
		`key "split.no" is of type u32, expected u16`:                     {1: set("split.no", uint32(1))},
		"this is part 3 of 3, expected part 2 of 3 by its name":           {1: set("split.no", uint16(2))},
		"this is part 2 of 4, expected part 2 of 3 by its name":           {1: set("split.count", uint16(4))},
		"and its name does not end in -00001-of-00002.gguf":               {0: set("split.count", uint16(2))},
		"and its name does not end in -00001-of-65535.gguf":               {0: set("split.count", uint16(65535))},
		"the parts hold 21 tensors, but split.tensors.count is 22":        {0: set("split.tensors.count", int32(22))},
		`key "split.tensors.count" is of type u32, expected i32`:          {0: set("split.tensors.count", uint32(21))},
		`tensor "output_norm.weight" is in an earlier part, too`:          {2: tensor("output_norm.weight", F32, 32)},
		"general.alignment is 8, expected a multiple of 32 for llama.cpp": {1: set("general.alignment", uint32(8))},
		"the parts hold 20 tensors, but split.tensors.count is 21":        {2: dropTensor("blk.1.ffn_up.weight")},
	} {
		_, err := CheckModel(splitModel(t, sizes, edits)[0])
		requireInputError(t, err, says)
	}
}

func TestOneOfOnePart(t *testing.T) {
	m, err := checkEdited(t, nil, set("split.count", uint16(1)), set("split.no", uint16(0)), set("split.tensors.count", int32(21)))
	require.NoError(t, err)
	require.Len(t, m.Paths, 1)
}

// llamaSource is where the pinned llama.cpp's sources are.
func llamaSource(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", "github.com/ollama/ollama").Output()
	require.NoError(t, err)
	var module struct{ Dir string }
	require.NoError(t, json.Unmarshal(out, &module))
	return filepath.Join(module.Dir, "llama/llama.cpp/src")
}

// The tables are those of the pinned llama.cpp: all its architectures, and the
// graphs that assert that all of a head rotates.
func TestTablesAreLlamaCpps(t *testing.T) {
	dir := llamaSource(t)
	source := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(b)
	}
	names := map[string]string{} // by enumerator
	for _, m := range regexp.MustCompile(`\{ (LLM_ARCH_\w+), +"([^"(]+)" +\}`).FindAllStringSubmatch(source("llama-arch.cpp"), -1) {
		names[m[1]] = m[2]
	}
	require.Greater(t, len(names), 100)
	ours := slices.AppendSeq(slices.Collect(maps.Keys(architectures)), maps.Keys(otherArchitectures))
	require.ElementsMatch(t, slices.Collect(maps.Values(names)), ours)

	asserting := map[string]bool{} // by builder
	files, err := filepath.Glob(filepath.Join(dir, "models", "*.cpp"))
	require.NoError(t, err)
	for _, file := range files {
		code := source(filepath.Join("models", filepath.Base(file)))
		asserts := regexp.MustCompile(`(?m)^ *GGML_ASSERT\(n_embd_head == hparams\.n_rot\)`).MatchString(code)
		for _, m := range regexp.MustCompile(`(llm_build_\w+)(<\w+>)?::llm_build_\w+\(`).FindAllStringSubmatch(code, -1) {
			asserting[m[1]] = asserts
		}
	}
	_, graphs, found := strings.Cut(source("llama-model.cpp"), "llama_model::build_graph(")
	require.True(t, found)
	var cases []string
	asserted := 0
	for line := range strings.Lines(graphs) {
		if m := regexp.MustCompile(`case (LLM_ARCH_\w+):`).FindStringSubmatch(line); m != nil {
			cases = append(cases, names[m[1]])
		}
		if m := regexp.MustCompile(`make_unique<(llm_build_\w+)`).FindStringSubmatch(line); m != nil {
			require.Contains(t, asserting, m[1])
			for _, arch := range cases {
				if _, other := otherArchitectures[arch]; asserting[m[1]] && !other {
					require.NotZero(t, architectures[arch]&fullRotary, "the graph of %s asserts n_rot", arch)
					asserted++
				}
			}
		}
		if strings.Contains(line, "break;") {
			cases = nil
		}
		if strings.HasPrefix(line, "}") {
			break
		}
	}
	require.Greater(t, asserted, 40)
}

func FuzzGGUF(f *testing.F) {
	kv, tensors := smallModel()
	small := edited(f, kv, tensors)
	f.Add(small)
	f.Add(small[:len(small)/2])
	f.Add(edited(f, kv, tensors, rename("gemma2")))
	f.Add(edited(f, kv, tensors, set("general.alignment", uint32(64))))
	f.Add(rawHeader(3, 1, 1).key("a").u32(9).u32(8).u64(1).text("x").tensor("a", F32, 0, 1).zeros(64).Bytes())
	f.Add(rawHeader(2, 0, 0).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		before := allocated()
		g, err := parse(b)
		if err == nil {
			_, err = g.model()
		}
		require.LessOrEqual(t, allocated()-before, allocationBound(len(b)))
		if err != nil {
			requireInputError(t, err, "model.gguf: ")
			return
		}
		// every tensor lies in the file, and none over another
		end := int64(0)
		for _, tensor := range g.tensors {
			require.GreaterOrEqual(t, tensor.offset, end)
			end = tensor.offset + tensor.Bytes
			require.LessOrEqual(t, end, int64(len(b)))
		}
		// what was read can be written, and is the same then
		var out []TensorData
		for _, tensor := range g.tensors {
			out = append(out, TensorData{tensor.Name, tensor.Type, tensor.Shape, bytes.NewReader(b[tensor.offset : tensor.offset+tensor.Bytes])})
		}
		again, err := parse(encode(t, g.kv, out))
		require.NoError(t, err)
		require.Equal(t, g.tensors, relocated(again.tensors, g.tensors))
		require.Equal(t, len(g.kv), len(again.kv))
	})
}

// relocated gives tensors the offsets of others, which the length of strange
// but valid metadata moves.
func relocated(tensors, like []Tensor) []Tensor {
	tensors = slices.Clone(tensors)
	for i := range tensors {
		tensors[i].offset = like[i].offset
	}
	return tensors
}
