package loader

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A ModelFile describes a GGUF model that passed CheckModel.
type ModelFile struct {
	Paths        []string // the file, or all parts of a split one
	Arch         string   // GGUF architecture
	Name         string   // general.name, or else the file's name
	Quantization string   // llama.cpp's name of the file's type, such as "Q4_K - Medium"
	Embd         int      // width of the residual stream
	Layers       int      // number of blocks
	Vocab        int      // number of tokens
	TrainContext int      // tokens the model was trained on
	ChatTemplate string   // "" if it has none
	TotalBytes   int64    // of all tensors
	Types        []TypeCount
	Metadata     []KV // of the first part
	Tensors      []Tensor
}

// A TypeCount says how many of a model's tensors, and how many bytes, are of one type.
type TypeCount struct {
	Type    TensorType
	Tensors int
	Bytes   int64
}

// A CheckOption relaxes CheckModel.
type CheckOption int

// AllowNoTokenizer lets models pass whose tokenizer.ggml.model is "none": they
// take tokens, but no text.
const AllowNoTokenizer CheckOption = 1

// CheckModel reads a GGUF model's metadata, of a split one given by its first
// part, and checks all that can be known before llama.cpp opens it: that nothing
// is cut off, that the values fit together, and that none of them ends
// llama.cpp's process. What is wrong is an *InputError that names it.
func CheckModel(path string, options ...CheckOption) (m *ModelFile, err error) {
	err = openGGUF(path, func(g *ggufFile) error {
		m, err = g.model(options...)
		return err
	})
	return m, err
}

func (g *ggufFile) model(options ...CheckOption) (*ModelFile, error) {
	if err := g.checkIsModel(); err != nil {
		return nil, err
	}
	c := &modelCheck{ggufFile: g, noTokenizer: slices.Contains(options, AllowNoTokenizer), byName: map[string]Tensor{}}
	for _, check := range []func() error{
		c.parts, c.architecture, c.hyperparameters, c.tensorTypes, c.embedding, c.requiredTensors, c.attention, c.tokenizer,
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return c.describe(), nil
}

// checkIsModel tells files apart that are GGUF but no model.
func (g *ggufFile) checkIsModel() error {
	arch, _, err := lookup[string](g, keyArch)
	if err != nil {
		return err
	}
	kind, _, err := lookup[string](g, "general.type")
	if err != nil {
		return err
	}
	switch {
	case arch == steeringArch:
		return &InputError{Message: g.path + ": this is a steering file, expected a model", Hint: "give it with -s, and the model with -m"}
	case g.isControlVector():
		return &InputError{Message: g.path + ": this is a llama.cpp control vector, expected a model", Hint: "give it with -s, and the model with -m"}
	case kind != "" && kind != "model":
		return inputError(g.path, "this GGUF file holds no model: its general.type is %q", kind)
	}
	return nil
}

// modelCheck checks a model that may be split over several files; the embedded
// one is the first, which has the metadata.
type modelCheck struct {
	*ggufFile
	noTokenizer bool

	paths   []string
	all     []Tensor // of all parts
	byName  map[string]Tensor
	arch    string
	is      traits
	embd    int64
	layers  int64
	context int64
	vocab   int64
	// of each layer; nil if the file does not say
	heads, headsKV []uint32
	headK, headV   int64 // width of a head's keys and values; 0 without heads
	experts        uint32
}

func (c *modelCheck) fail(format string, args ...any) error {
	return inputError(c.path, format, args...)
}

// --- split models -----------------------------------------------------------

// partName is how llama.cpp names and finds the parts of a split model.
var partName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

func (c *modelCheck) parts() error {
	if err := c.add(c.ggufFile); err != nil {
		return err
	}
	count, _, err := lookup[uint16](c.ggufFile, "split.count")
	if err != nil || count <= 1 {
		return err
	}
	number, err := needed[uint16](c.ggufFile, "split.no")
	if err != nil {
		return err
	}
	name := partName.FindStringSubmatch(c.path)
	first := "the part whose name ends in -00001-of-" + fmt.Sprintf("%05d.gguf", count)
	if number != 0 {
		if name != nil {
			first = fmt.Sprintf("%s-00001-of-%s.gguf", name[1], name[3])
		}
		return &InputError{Message: fmt.Sprintf("%s: this is part %d of %d of a split model", c.path, number+1, count), Hint: "give the first part: " + first}
	}
	if name == nil || name[1] == "" || name[2] != "00001" || name[3] != fmt.Sprintf("%05d", count) {
		return c.fail("this is the first of %d parts of a split model, and its name does not end in -00001-of-%05d.gguf, by which the others are found", count, count)
	}
	for i := uint16(1); i < count; i++ {
		path := fmt.Sprintf("%s-%05d-of-%05d.gguf", name[1], i+1, count)
		err := openGGUF(path, func(g *ggufFile) error {
			number, err := needed[uint16](g, "split.no")
			if err != nil {
				return err
			}
			ofCount, found, err := lookup[uint16](g, "split.count")
			if err != nil {
				return err
			}
			if number != i || found && ofCount != count {
				return inputError(path, "this is part %d of %d, expected part %d of %d by its name", number+1, ofCount, i+1, count)
			}
			return c.add(g)
		})
		if err != nil {
			return err
		}
	}
	total, err := needed[int32](c.ggufFile, "split.tensors.count")
	if err == nil && int(total) != len(c.all) {
		err = c.fail("the parts hold %d tensors, but split.tensors.count is %d", len(c.all), total)
	}
	return err
}

func (c *modelCheck) add(g *ggufFile) error {
	// ggml asserts this of addresses, and llama.cpp maps files into memory
	if g.align%defaultAlignment != 0 {
		return inputError(g.path, "general.alignment is %d, expected a multiple of %d for llama.cpp", g.align, defaultAlignment)
	}
	c.paths = append(c.paths, g.path)
	for _, t := range g.tensors {
		if _, twice := c.byName[t.Name]; twice {
			return inputError(g.path, "tensor %q is in an earlier part, too", t.Name)
		}
		c.byName[t.Name] = t
		c.all = append(c.all, t)
	}
	return nil
}

// --- metadata ---------------------------------------------------------------

func (c *modelCheck) architecture() (err error) {
	if c.arch, err = needed[string](c.ggufFile, keyArch); err != nil {
		return err
	}
	if what, ok := otherArchitectures[c.arch]; ok {
		return c.fail("its architecture is %q: %s", c.arch, what)
	}
	if c.is = architectures[c.arch]; c.is == 0 {
		return &InputError{
			Message: fmt.Sprintf("%s: its architecture is %q, which this llama.cpp does not know", c.path, c.arch),
			Hint:    "it knows " + strings.Join(slices.Sorted(maps.Keys(architectures)), ", "),
		}
	}
	return nil
}

// key is the full name of a hyperparameter.
func (c *modelCheck) key(name string) string { return c.arch + "." + name }

// number reads a hyperparameter within bounds; fallback is for files without
// it, and -1 if there must be one.
func (c *modelCheck) number(name string, least, most, fallback int64) (int64, error) {
	key := c.key(name)
	v, found, err := lookup[uint32](c.ggufFile, key)
	switch {
	case err != nil:
		return 0, err
	case !found && fallback < 0:
		return 0, c.fail("key %q is missing, expected u32", key)
	case !found:
		return fallback, nil
	case int64(v) < least || int64(v) > most:
		return 0, c.fail("key %q is %d, expected %d to %d", key, v, least, most)
	}
	return int64(v), nil
}

// perLayer reads a hyperparameter that is one number or one for each layer;
// nil if it is missing. Zero stands for layers without such a thing.
func (c *modelCheck) perLayer(name string, most uint32) ([]uint32, error) {
	key := c.key(name)
	var values []uint32
	switch v := c.get(key).(type) {
	case nil:
		return nil, nil
	case uint32:
		values = slices.Repeat([]uint32{v}, int(c.layers))
	case []uint32:
		values = v
	case []int32:
		for _, x := range v {
			values = append(values, uint32(x)) // negative ones become too large
		}
	default:
		return nil, c.fail("key %q is of type %s, expected u32 or an array of u32 or i32", key, typeName(v))
	}
	if int64(len(values)) != c.layers {
		return nil, c.fail("key %q has %d elements, expected one for each of %d layers", key, len(values), c.layers)
	}
	for i, x := range values {
		if x > most {
			return nil, c.fail("key %q is %d for layer %d, expected at most %d", key, int32(x), i, most)
		}
	}
	return values, nil
}

const (
	maxLayers  = 512 // llama.cpp's LLAMA_MAX_LAYERS
	maxExperts = 512 // LLAMA_MAX_EXPERTS
	// With these, no product of two of them leaves 32 bits, in which llama.cpp
	// multiplies. Models of today are at most a tenth.
	maxHeads     = 1 << 14
	maxHeadWidth = 1 << 16
	maxWidth     = 1 << 24
)

func (c *modelCheck) hyperparameters() (err error) {
	if c.layers, err = c.number("block_count", 1, maxLayers, -1); err != nil {
		return err
	}
	if c.embd, err = c.number("embedding_length", 1, maxWidth, -1); err != nil {
		return err
	}
	if c.context, err = c.number("context_length", 1, math.MaxInt32, -1); err != nil {
		return err
	}
	if _, err = c.perLayer("feed_forward_length", maxWidth); err != nil {
		return err
	}
	for _, check := range []func() error{c.floats32, c.arrays, c.headCounts, c.rotary, c.window, c.expertCounts, c.recurrence, c.special} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// floats32 checks the numbers that enter as they are.
func (c *modelCheck) floats32() error {
	for _, e := range c.kv {
		x, ok := e.Value.(float32)
		if ok && strings.HasPrefix(e.Key, c.arch+".") && x-x != 0 {
			return c.fail("key %q is %v, expected a finite number", e.Key, x)
		}
	}
	for _, bound := range []struct {
		name     string
		positive bool
	}{
		{"attention.layer_norm_rms_epsilon", false},
		{"attention.layer_norm_epsilon", false},
		{"rope.freq_base", true},
	} {
		key := c.key(bound.name)
		x, found, err := lookup[float32](c.ggufFile, key)
		switch {
		case err != nil:
			return err
		case found && (x < 0 || bound.positive && x == 0):
			return c.fail("key %q is %v, expected a positive number", key, x)
		}
	}
	return nil
}

// arrays checks the element types that llama.cpp asserts.
func (c *modelCheck) arrays() error {
	for key, fits := range map[string]func(any) bool{
		c.key("classifier.output_labels"): isOf[[]string],
		"xielu.alpha_n":                   isOf[[]float32],
		"xielu.alpha_p":                   isOf[[]float32],
		"xielu.beta":                      isOf[[]float32],
		"xielu.eps":                       isOf[[]float32],
	} {
		v := c.get(key)
		if v != nil && strings.HasPrefix(typeName(v), "array") && !fits(v) {
			return c.fail("key %q is of type %s, which llama.cpp does not expect there", key, typeName(v))
		}
	}
	for i := range 4 {
		if _, err := c.perLayer(fmt.Sprintf("attention.block_skip_connection.%d", i), math.MaxUint32); err != nil {
			return err
		}
	}
	return nil
}

func isOf[T any](v any) bool {
	_, ok := v.(T)
	return ok
}

func (c *modelCheck) headCounts() (err error) {
	if c.heads, err = c.perLayer("attention.head_count", maxHeads); err != nil {
		return err
	}
	if c.headsKV, err = c.perLayer("attention.head_count_kv", maxHeads); err != nil {
		return err
	}
	if c.headsKV == nil {
		c.headsKV = c.heads
	}
	if c.heads == nil || c.heads[0] == 0 {
		if c.is&recurrent != 0 {
			return nil // no attention, or not in the first layer
		}
		return c.fail("key %q is missing or 0, expected the number of attention heads", c.key("attention.head_count"))
	}
	for i, n := range c.heads {
		if kv := c.headsKV[i]; kv > 0 && n%kv != 0 {
			return c.fail("layer %d has %d heads and %d of keys and values, expected a divisor of the former", i, n, kv)
		}
	}
	if c.is&everyHead != 0 && !slices.Equal(c.heads, c.headsKV) {
		return c.fail("%v heads of %v have keys and values, expected all of them in models of architecture %s", c.headsKV, c.heads, c.arch)
	}
	// a head has its share of the width, if the file does not say otherwise
	share := c.embd / int64(c.heads[0])
	for _, head := range []struct {
		name  string
		width *int64
	}{{"attention.key_length", &c.headK}, {"attention.value_length", &c.headV}} {
		if *head.width, err = c.number(head.name, 1, maxHeadWidth, share); err != nil {
			return err
		}
		if *head.width == share && c.get(c.key(head.name)) == nil && c.embd%int64(c.heads[0]) != 0 {
			return c.fail("its width %d is not a multiple of its %d heads, and it has no key %q", c.embd, c.heads[0], c.key(head.name))
		}
	}
	if min(c.headK, c.headV) < 2 {
		return c.fail("a head has keys of %d and values of %d numbers, expected 2 or more", c.headK, c.headV)
	}
	if c.is&(latent|recurrent) == 0 && c.headK != c.headV {
		return c.fail("heads have keys of %d and values of %d numbers, and models of architecture %s have as many of both", c.headK, c.headV, c.arch)
	}
	return nil
}

func (c *modelCheck) rotary() error {
	switch s, found, err := lookup[string](c.ggufFile, c.key("rope.scaling.type")); {
	case err != nil:
		return err
	case found && !slices.Contains([]string{"none", "linear", "yarn", "longrope"}, s):
		return c.fail("key %q is %q, expected none, linear, yarn or longrope", c.key("rope.scaling.type"), s)
	}
	if c.headK == 0 {
		return nil
	}
	head := c.headK
	if mla, err := c.number("attention.key_length_mla", 1, maxHeadWidth, 0); err != nil {
		return err
	} else if mla != 0 && c.is&latent != 0 {
		head = mla
	}
	key := c.key("rope.dimension_count")
	n, err := c.number("rope.dimension_count", 0, maxHeadWidth, c.headK)
	switch {
	case err != nil:
		return err
	case c.is&noRotary != 0:
	case n > head:
		return c.fail("key %q is %d, more than the %d numbers of a head", key, n, head)
	case n%2 != 0:
		return c.fail("%d dimensions rotate, expected an even number (key %q)", n, key)
	case c.is&fullRotary != 0 && n != head:
		return c.fail("key %q is %d, expected the %d numbers of a head in models of architecture %s", key, n, head, c.arch)
	case c.is&latent != 0 && n >= head:
		return c.fail("key %q is %d, and fewer than the %d numbers of a head rotate in models of architecture %s", key, n, head, c.arch)
	}
	return c.rotarySections()
}

func (c *modelCheck) rotarySections() error {
	key := c.key("rope.dimension_sections")
	var sections []int32
	switch v := c.get(key).(type) {
	case nil:
		if c.is&multiRotary != 0 {
			return c.fail("key %q is missing, expected an array of 4 i32", key)
		}
		return nil
	case []int32:
		sections = v
	case []uint32:
		for _, x := range v {
			sections = append(sections, int32(x))
		}
	default:
		return c.fail("key %q is of type %s, expected an array of 4 i32", key, typeName(v))
	}
	sum := int64(0)
	for _, x := range sections {
		if x < 0 || x > maxHeadWidth {
			return c.fail("key %q is %v, expected no negative or huge numbers", key, sections)
		}
		sum += int64(x)
	}
	if sum > c.headK {
		return c.fail("key %q is %v, more than the %d numbers of a head", key, sections, c.headK)
	}
	if len(sections) != 4 || c.is&multiRotary != 0 && (sum == 0 || sections[0] == 0) {
		return c.fail("key %q is %v, expected 4 numbers, of which the first is positive", key, sections)
	}
	return nil
}

func (c *modelCheck) window() error {
	least, fallback := int64(0), int64(0)
	if c.is&sliding != 0 {
		least, fallback = 1, -1
	}
	if c.arch == "gemma2" {
		fallback = 4096 // llama.cpp's
	}
	n, err := c.number("attention.sliding_window", least, math.MaxInt32, fallback)
	if c.arch == "llama4" && c.get(c.key("attention.sliding_window")) == nil {
		n = 8192 // llama.cpp's
	}
	if period := windowPeriods[c.arch]; err == nil && n > 0 && c.layers < period {
		err = c.fail("key %q is %d, expected %d or more: llama.cpp runs a %s model with attention windows only if it has layers with and without one", c.key("block_count"), c.layers, period, c.arch)
	}
	return err
}

func (c *modelCheck) expertCounts() error {
	least := int64(0)
	if c.is&experts != 0 {
		least = 1
	}
	n, err := c.number("expert_count", least, maxExperts, -min(least, 1))
	if err != nil {
		return err
	}
	c.experts = uint32(n)
	used, err := c.number("expert_used_count", min(n, 1), n, -min(n, 1))
	if err != nil {
		return err
	}
	groups, err := c.number("expert_group_count", 0, max(n-1, 0), 0)
	if err != nil {
		return err
	}
	if groups > 1 {
		if n%groups != 0 {
			return c.fail("%d experts do not divide into %d groups (keys %q and %q)", n, groups, c.key("expert_count"), c.key("expert_group_count"))
		}
		if _, err := c.number("expert_group_used_count", 1, groups-1, -1); err != nil {
			return err
		}
	}
	if used == 0 {
		return nil
	}
	gate, fallback := int64(0), int64(0)
	if c.is&gated != 0 {
		gate, fallback = 1, -1
	}
	_, err = c.number("expert_gating_func", gate, 3, fallback)
	return err
}

// recurrence checks the sizes by which llama.cpp divides.
func (c *modelCheck) recurrence() error {
	need := func(least int64, names ...string) error {
		for _, name := range names {
			if _, err := c.number(name, least, maxWidth, -1); err != nil {
				return err
			}
		}
		return nil
	}
	if c.is&stateSpace != 0 {
		if err := need(1, "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank"); err != nil {
			return err
		}
		inner, _ := c.number("ssm.inner_size", 1, maxWidth, -1)
		rank, _ := c.number("ssm.time_step_rank", 1, maxWidth, -1)
		if c.is&halfInner != 0 && inner != 2*c.embd {
			return c.fail("key %q is %d, expected twice the width %d", c.key("ssm.inner_size"), inner, c.embd)
		}
		if c.is&groups != 0 {
			if err := need(1, "ssm.group_count"); err != nil {
				return err
			}
			n, _ := c.number("ssm.group_count", 1, maxWidth, -1)
			if inner%n != 0 || inner%rank != 0 || rank%n != 0 {
				return c.fail("%s is %d, %s is %d and %s is %d, expected each to be a multiple of the next", c.key("ssm.inner_size"), inner, "ssm.time_step_rank", rank, "ssm.group_count", n)
			}
			if state, _ := c.number("ssm.state_size", 1, maxWidth, -1); c.arch == "qwen3next" && inner != state*rank {
				return c.fail("key %q is %d, expected ssm.time_step_rank times ssm.state_size, %d", c.key("ssm.inner_size"), inner, state*rank)
			}
		}
	}
	if c.is&linear != 0 {
		if n, err := c.number("wkv.head_size", 1, maxWidth, -1); err != nil {
			return err
		} else if c.embd%n != 0 {
			return c.fail("key %q is %d, expected a divisor of the width %d", c.key("wkv.head_size"), n, c.embd)
		}
		shifts := int64(2)
		if strings.HasPrefix(c.arch, "a") || strings.HasSuffix(c.arch, "qwen2") { // without a channel mix
			shifts = 1
		}
		if n, err := c.number("token_shift_count", 1, 2, 2); err != nil {
			return err
		} else if n != shifts {
			return c.fail("key %q is %d, expected %d in models of architecture %s", c.key("token_shift_count"), n, shifts, c.arch)
		}
	}
	if c.is&mixed != 0 && (!slices.ContainsFunc(c.headsKV, func(n uint32) bool { return n > 0 }) || !slices.Contains(c.headsKV, 0)) {
		return c.fail("key %q is %v, expected 0 for some layers and more for others in models of architecture %s", c.key("attention.head_count_kv"), c.headsKV, c.arch)
	}
	if c.is&shortConv != 0 {
		return need(2, "shortconv.l_cache")
	}
	return nil
}

// special checks what one architecture alone asserts.
func (c *modelCheck) special() error {
	switch c.arch {
	case "baichuan":
		if c.layers != 32 && c.layers != 40 {
			return c.fail("key %q is %d, expected 32 or 40: llama.cpp knows a baichuan model's kind by it", c.key("block_count"), c.layers)
		}
	case "ernie4_5-moe":
		_, err := c.number("interleave_moe_layer_step", 1, maxLayers, -1)
		return err
	case "grovemoe":
		_, err := c.number("experts_per_group", 1, maxExperts, -1)
		return err
	case "glm4moe", "bailingmoe2":
		_, err := c.number("nextn_predict_layers", 0, c.layers-1, 0)
		return err
	case "qwen3next":
		if c.layers < 4 { // every fourth has attention
			return c.fail("key %q is %d, expected 4 or more", c.key("block_count"), c.layers)
		}
	case "nemotron_h":
		// it divides by expert_used_count otherwise, even where there are no experts
		if c.experts == 0 {
			_, err := c.number("expert_feed_forward_length", 1, maxWidth, -1)
			return err
		}
	case "plamo2":
		_, err := c.number("ssm.group_count", 0, 0, -1)
		return err
	case "deepseek2":
		if err := c.deepseekHeads(); err != nil {
			return err
		}
		scale, _, err := lookup[float32](c.ggufFile, c.key("attention.temperature_scale"))
		if err == nil && scale != 0 {
			_, err = c.number("attention.temperature_length", 1, math.MaxInt32, -1)
		}
		return err
	}
	return nil
}

// deepseekHeads checks what the cache of keys and values is given: with
// key_length_mla the narrow layer itself and what rotates, as one head.
func (c *modelCheck) deepseekHeads() error {
	k, err := c.number("attention.key_length_mla", 0, maxHeadWidth, 0)
	if err != nil {
		return err
	}
	v, err := c.number("attention.value_length_mla", 0, maxHeadWidth, 0)
	if err != nil {
		return err
	}
	if k == 0 || v == 0 {
		if !slices.Equal(c.heads, c.headsKV) {
			return c.fail("%v heads of %v have keys and values, expected all of them without %s", c.headsKV, c.heads, c.key("attention.key_length_mla"))
		}
		return nil
	}
	rank, err := c.number("attention.kv_lora_rank", 1, maxHeadWidth, -1)
	if err != nil {
		return err
	}
	rotating, err := c.number("rope.dimension_count", 0, maxHeadWidth, c.headK)
	if err != nil {
		return err
	}
	for i, kv := range c.headsKV {
		if kv != 1 || c.headK != rank+rotating || c.headV != rank {
			return c.fail("layer %d caches %d heads with keys of %d and values of %d numbers, expected 1 of %d and %d, by kv_lora_rank and rope.dimension_count", i, kv, c.headK, c.headV, rank+rotating, rank)
		}
	}
	return nil
}

// --- tensors ----------------------------------------------------------------

var blockName = regexp.MustCompile(`^blk\.(\d+)\.`)

// A tensorUse is what ggml does with a weight.
type tensorUse string

const (
	asMatrix    tensorUse = "multiplied as a matrix"
	elementwise tensorUse = "added or multiplied number by number"
	lookedUp    tensorUse = "looked up row by row"
	convolved   tensorUse = "a convolution"
	ofExperts   tensorUse = "the matrices of experts"
)

var elementwiseNames = map[string]bool{
	"attn_sinks": true, "ffn.act": true, "exp_probs_b": true, "ssm_a": true, "ssm_d": true, "time_mix_a0": true, "time_mix_decay": true,
	"time_mix_first": true, "time_mix_k_a": true, "time_mix_k_k": true, "time_mix_ln": true, "time_mix_r_k": true, "time_mix_v0": true, "time_mix_w0": true,
}

// useOf goes by the names in llama-arch.cpp.
func useOf(name string) tensorUse {
	base := strings.TrimSuffix(blockName.ReplaceAllString(name, ""), ".weight")
	switch {
	case strings.HasSuffix(base, ".bias"), strings.Contains(base, "norm"), strings.HasPrefix(base, "rope_f"),
		strings.Contains(base, "_mix_lerp_"), elementwiseNames[base]:
		return elementwise
	case slices.Contains([]string{"token_embd", "position_embd", "per_layer_token_embd"}, base):
		return lookedUp
	case base == "ssm_conv1d", base == "shortconv.conv":
		return convolved
	case strings.HasSuffix(base, "exps"):
		return ofExperts
	}
	return asMatrix
}

// tensorTypes checks types, dimensions and block numbers of all tensors.
func (c *modelCheck) tensorTypes() error {
	for _, t := range c.all {
		if m := blockName.FindStringSubmatch(t.Name); m != nil {
			if n, err := strconv.Atoi(m[1]); err != nil || int64(n) >= c.layers {
				return c.fail("tensor %q belongs to block %s, but %s is %d", t.Name, m[1], c.key("block_count"), c.layers)
			}
		}
		use, dims := useOf(t.Name), len(dimensions(t))
		switch {
		case !layouts[t.Type].weight:
			return c.fail("tensor %q is of type %v, in which ggml computes but stores no weights", t.Name, t.Type)
		case t.Type != F32 && (use == elementwise || use == convolved):
			return c.fail("tensor %q is of type %v, expected F32 for what is %s", t.Name, t.Type, use)
		case t.Type != F32 && use == asMatrix && dims == 1 && c.is&recurrent == 0:
			return c.fail("tensor %q is of type %v, expected F32 for one dimension", t.Name, t.Type)
		case (use == lookedUp || use == convolved) && dims > 2, use == ofExperts && dims > 3, strings.Contains(t.Name, ".ffn.act") && dims > 1:
			return c.fail("tensor %q has the shape %v, too many dimensions for what is %s", t.Name, t.Shape, use)
		case use == ofExperts && c.experts == 0:
			return c.fail("tensor %q is of experts, but %s is missing or 0", t.Name, c.key("expert_count"))
		}
		// a bias is added to what its matrix gives
		if stem, isBias := strings.CutSuffix(t.Name, ".bias"); isBias {
			if w, ok := c.byName[stem+".weight"]; ok {
				expected := dimensions(w)
				if len(expected) > 1 {
					expected = expected[1:]
				}
				if !slices.Equal(dimensions(t), expected) {
					return c.fail("tensor %q has the shape %v, expected %v beside %q of shape %v", t.Name, t.Shape, expected, w.Name, w.Shape)
				}
			}
		}
	}
	return nil
}

// dimensions is a tensor's shape without what ggml does not count: ones at the end.
func dimensions(t Tensor) []int64 {
	n := len(t.Shape)
	for n > 1 && t.Shape[n-1] == 1 {
		n--
	}
	return t.Shape[:n]
}

// expect checks a tensor's shape, if the model has it; -1 is any number.
func (c *modelCheck) expect(name string, why string, shape ...int64) error {
	t, ok := c.byName[name]
	if !ok {
		return nil
	}
	actual := append(slices.Clone(dimensions(t)), 1, 1, 1)
	fits := len(dimensions(t)) <= len(shape)
	for i, n := range shape {
		fits = fits && (n < 0 || n == actual[i])
	}
	if !fits {
		return c.fail("tensor %q has the shape %v, expected %s for %s", name, t.Shape, strings.ReplaceAll(fmt.Sprint(shape), "-1", "any"), why)
	}
	return nil
}

func (c *modelCheck) embedding() error {
	name := "token_embd.weight"
	t, ok := c.byName[name]
	if !ok && c.arch == "codeshell" {
		name = "output.weight" // serves as both
		t, ok = c.byName[name]
	}
	if !ok {
		return c.fail("tensor %q is missing among %d tensors", name, len(c.all))
	}
	if err := c.expect(name, fmt.Sprintf("%s = %d", c.key("embedding_length"), c.embd), c.embd, -1); err != nil {
		return err
	}
	c.vocab = 1
	if len(t.Shape) > 1 {
		c.vocab = t.Shape[1]
	}
	if c.vocab > math.MaxInt32 {
		return c.fail("tensor %q has %d rows, more than there are token ids", name, c.vocab)
	}
	if c.arch == "chameleon" && c.vocab < 8196 { // its picture tokens end there
		return c.fail("tensor %q has %d rows, expected 8196 or more in models of architecture chameleon", name, c.vocab)
	}
	why := fmt.Sprintf("as many tokens as %q has rows", name)
	if err := c.expect("output.weight", why, c.embd, c.vocab); err != nil {
		return err
	}
	return c.expect("output_norm.weight", fmt.Sprintf("%s = %d", c.key("embedding_length"), c.embd), c.embd)
}

// requiredTensors checks that tensors are there which llama.cpp does not miss in time.
func (c *modelCheck) requiredTensors() error {
	for i := range c.layers {
		block := strings.NewReplacer("%d", strconv.FormatInt(i, 10))
		for _, need := range neededTensors[c.arch] {
			name := block.Replace(need.name)
			_, found := c.byName[name]
			_, used := c.byName[block.Replace(need.beside)]
			if !found && (used || need.beside == "") {
				return c.fail("tensor %q is missing, expected in models of architecture %s", name, c.arch)
			}
		}
		if fused, ok := c.byName[block.Replace("blk.%d.time_mix_lerp_fused.weight")]; ok && strings.HasSuffix(c.arch, "rwkv7") {
			parts := int64(5)
			_, g1 := c.byName[block.Replace("blk.%d.time_mix_g1.weight")]
			_, g2 := c.byName[block.Replace("blk.%d.time_mix_g2.weight")]
			if g1 && g2 {
				parts = 6
			}
			if len(fused.Shape) != 4 || fused.Shape[3] != parts {
				return c.fail("tensor %q has the shape %v, expected %d in its fourth dimension", fused.Name, fused.Shape, parts)
			}
		}
		if c.arch == "rwkv6" {
			_, fused := c.byName[block.Replace("blk.%d.time_mix_lerp_fused.weight")]
			_, single := c.byName[block.Replace("blk.%d.time_mix_lerp_w.weight")]
			if !fused && !single {
				return c.fail("block %d has neither of the tensors time_mix_lerp_fused.weight and time_mix_lerp_w.weight", i)
			}
		}
	}
	return nil
}

// attention checks the matrices around the heads: llama.cpp cuts what they
// give into heads without looking whether that works out.
func (c *modelCheck) attention() error {
	if c.is&(recurrent|latent) != 0 {
		return nil
	}
	for i := range c.layers {
		n, kv := int64(c.heads[i]), int64(c.headsKV[i])
		if n == 0 || kv == 0 {
			continue // a layer without attention
		}
		why := fmt.Sprintf("%d heads of %d, %d of them with keys and values, and width %d", n, c.headK, kv, c.embd)
		q, k, v := n*c.headK, kv*c.headK, kv*c.headV
		for _, m := range []struct {
			name    string
			in, out int64
		}{
			{"attn_q", c.embd, q}, {"attn_k", c.embd, k}, {"attn_v", c.embd, v}, {"attn_qkv", c.embd, q + k + v}, {"attn_output", n * c.headV, c.embd},
		} {
			if err := c.expect(fmt.Sprintf("blk.%d.%s.weight", i, m.name), why, m.in, m.out); err != nil {
				return err
			}
		}
	}
	return nil
}

// --- description ------------------------------------------------------------

func (c *modelCheck) describe() *ModelFile {
	m := &ModelFile{
		Paths: c.paths, Arch: c.arch,
		Embd: int(c.embd), Layers: int(c.layers), Vocab: int(c.vocab), TrainContext: int(c.context),
		Metadata: c.kv, Tensors: c.all,
	}
	// of another type, they say nothing
	m.Name, _ = c.get("general.name").(string)
	m.ChatTemplate, _ = c.get("tokenizer.chat_template").(string)
	if m.Name == "" {
		m.Name = strings.TrimSuffix(filepath.Base(c.path), ".gguf")
	}
	counts := make(map[TensorType]*TypeCount)
	for _, t := range c.all {
		if counts[t.Type] == nil {
			counts[t.Type] = &TypeCount{Type: t.Type}
		}
		counts[t.Type].Tensors++
		counts[t.Type].Bytes += t.Bytes
		m.TotalBytes += t.Bytes
	}
	for _, n := range counts {
		m.Types = append(m.Types, *n)
	}
	slices.SortFunc(m.Types, func(a, b TypeCount) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Type, b.Type))
	})
	m.Quantization = m.Types[0].Type.String()
	if number, ok := c.get("general.file_type").(uint32); ok && fileTypes[number] != "" {
		m.Quantization = fileTypes[number]
	}
	return m
}
