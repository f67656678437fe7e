package loader

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// specialTokens are the ids that llama.cpp takes where a tokenizer of some kind
// says nothing, or names a token that does not exist.
var specialTokens = map[string]map[string]uint32{
	"llama":  {"bos": 1, "eos": 2, "unknown": 0},
	"gpt2":   {"bos": 11, "eos": 11},
	"bert":   {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
	"t5":     {"eos": 1, "unknown": 2, "padding": 0},
	"plamo2": {"bos": 1, "eos": 2, "unknown": 0, "padding": 3},
	"rwkv":   {},
}

// tokenizer checks the vocabulary: llama.cpp reads its arrays side by side
// without looking at their lengths and types.
func (c *modelCheck) tokenizer() error {
	kind, found, err := lookup[string](c.ggufFile, "tokenizer.ggml.model")
	if err != nil {
		return err
	}
	if !found || kind == "none" || kind == "no_vocab" {
		if found && c.noTokenizer {
			return c.vocabSize()
		}
		says := "key \"tokenizer.ggml.model\" is missing"
		if found {
			says = fmt.Sprintf("tokenizer.ggml.model is %q", kind)
		}
		return &InputError{Message: fmt.Sprintf("%s: this model has no tokenizer: %s", c.path, says), Hint: "convert the model again, together with its tokenizer"}
	}
	defaults, ok := specialTokens[kind]
	if !ok {
		return c.fail("its tokenizer is %q, expected one of %s", kind, strings.Join(slices.Sorted(maps.Keys(specialTokens)), ", "))
	}
	tokens, err := needed[[]string](c.ggufFile, "tokenizer.ggml.tokens")
	if err != nil {
		return err
	}
	if int64(len(tokens)) != c.vocab {
		return c.fail("tokenizer.ggml.tokens has %d tokens, but tensor \"token_embd.weight\" has %d rows", len(tokens), c.vocab)
	}
	if err := c.tokensDiffer(tokens); err != nil {
		return err
	}
	if err := c.parallel("tokenizer.ggml.scores", "array of f32", isOf[[]float32]); err != nil {
		return err
	}
	if err := c.parallel("tokenizer.ggml.token_type", "array of i32", func(v any) bool { return isOf[[]int32](v) || isOf[[]uint32](v) }); err != nil {
		return err
	}
	switch kind {
	case "gpt2":
		if _, err := needed[[]string](c.ggufFile, "tokenizer.ggml.merges"); err != nil {
			return err
		}
	case "t5":
		if err := c.charsmap(); err != nil {
			return err
		}
	}
	return c.specialIDs(kind, defaults)
}

// vocabSize checks the one thing that a model without tokenizer says of its tokens.
func (c *modelCheck) vocabSize() error {
	n, err := c.number("vocab_size", 1, c.vocab, -1)
	if err == nil && n != c.vocab {
		err = c.fail("key %q is %d, but tensor \"token_embd.weight\" has %d rows", c.key("vocab_size"), n, c.vocab)
	}
	return err
}

// tokensDiffer checks that the texts of tokens are as different as llama.cpp
// sees them: up to a zero byte, and with a made-up text for empty ones.
func (c *modelCheck) tokensDiffer(tokens []string) error {
	ids := make(map[string]int, len(tokens))
	for i, text := range tokens {
		text, _, _ = strings.Cut(text, "\x00")
		if text == "" {
			text = fmt.Sprintf("[EMPTY_%d]", i)
		}
		if j, twice := ids[text]; twice {
			return c.fail("tokens %d and %d of tokenizer.ggml.tokens are both %q, expected different ones", j, i, text)
		}
		ids[text] = i
	}
	return nil
}

// parallel checks an array that has an element for each token.
func (c *modelCheck) parallel(key, expected string, fits func(any) bool) error {
	v := c.get(key)
	if v == nil {
		return nil
	}
	if !fits(v) {
		return c.fail("key %q is of type %s, expected %s", key, typeName(v), expected)
	}
	n := 0
	switch v := v.(type) {
	case []float32:
		n = len(v)
		for i, x := range v {
			if x != x {
				return c.fail("key %q is not a number for token %d", key, i)
			}
		}
	case []int32:
		n = len(v)
	case []uint32:
		n = len(v)
	}
	if int64(n) != c.vocab {
		return c.fail("key %q has %d elements, expected one for each of %d tokens", key, n, c.vocab)
	}
	return nil
}

// charsmap checks the table by which a t5 tokenizer normalizes text: a length,
// so many bytes of a trie, and the replacements, each ended by a zero.
func (c *modelCheck) charsmap() error {
	const key = "tokenizer.ggml.precompiled_charsmap"
	var table []byte
	switch v := c.get(key).(type) {
	case nil:
		return nil
	case []uint8:
		table = v
	case []int8:
		for _, x := range v {
			table = append(table, byte(x))
		}
	default:
		return c.fail("key %q is of type %s, expected array of u8", key, typeName(v))
	}
	if len(table) == 0 {
		return nil
	}
	if len(table) < 5 || uint64(binary.LittleEndian.Uint32(table))+4 >= uint64(len(table)) || table[len(table)-1] != 0 {
		return c.fail("key %q of %d bytes is no table of characters (truncated?)", key, len(table))
	}
	return nil
}

// specialIDs checks the ids of tokens with a meaning. llama.cpp takes its
// default for one that is out of range; where that token decides how texts begin
// and end, it would silently be another model.
func (c *modelCheck) specialIDs(kind string, defaults map[string]uint32) error {
	pre, _, err := lookup[string](c.ggufFile, "tokenizer.ggml.pre")
	if err != nil {
		return err
	}
	hasBOS := false
	for _, name := range []string{"bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask"} {
		key := "tokenizer.ggml." + name + "_token_id"
		id, given, err := lookup[uint32](c.ggufFile, key)
		if err != nil {
			return err
		}
		inRange := given && int64(id) < c.vocab
		if decides := slices.Contains([]string{"bos", "eos", "eot", "eom", "unknown"}, name); given && !inRange && decides {
			return c.fail("key %q is %d, expected one of the tokens 0 to %d", key, id, c.vocab-1)
		}
		fallback, has := defaults[name]
		if name == "bos" && kind == "gpt2" && (pre == "glm4" || pre == "chatglm-bpe") {
			has = false
		}
		if !inRange && has && int64(fallback) >= c.vocab {
			return c.fail("key %q does not name a token, and %d, which tokenizers of kind %q have then, is none of its tokens 0 to %d", key, fallback, kind, c.vocab-1)
		}
		hasBOS = hasBOS || name == "bos" && (inRange || has)
	}
	add, _, err := lookup[bool](c.ggufFile, "tokenizer.ggml.add_bos_token")
	if err == nil && add && !hasBOS {
		err = c.fail("tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing")
	}
	return err
}
