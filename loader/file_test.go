package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// example is a steering of a kind, with three layers and width 4.
func example(kind Kind) *Steering {
	s := &Steering{
		Kind: kind, Layers: []int{0, 3, 11}, PromptOnly: true,
		Arch: "gemma2", Embd: 4, Model: "a model", Recipe: `{"lr": 0.1, "examples": [{"prompt": "añ"}]}`,
	}
	for i := range s.Layers {
		x := float32(i) + 0.1
		p := Parameters{Vector: []float32{x, -x, math.SmallestNonzeroFloat32, math.MaxFloat32}}
		if kind == Affine {
			p.Left = [][]float32{{x, 1, 2, 3}, {4, 5, x, 6}}
			p.Right = [][]float32{{-1, x, 0, 0}, {x, 0, 0, float32(math.Copysign(0, -1))}}
		}
		s.Params = append(s.Params, p)
	}
	if kind == Clamp {
		s.Clamp = 1.25
	}
	return s
}

func sharedExample(kind Kind) *Steering {
	s := example(kind)
	s.Shared, s.PromptOnly = true, false
	s.Params = s.Params[:1]
	s.Arch, s.Model, s.Recipe = "", "", ""
	return s
}

func TestSteeringsComeBack(t *testing.T) {
	dir := t.TempDir()
	for _, kind := range []Kind{Add, Affine, Ablate, Clamp} {
		for i, s := range []*Steering{example(kind), sharedExample(kind)} {
			path, again := filepath.Join(dir, fmt.Sprint(kind, i)), filepath.Join(dir, "again")
			require.NoError(t, Write(path, s))
			read, err := Read(path)
			require.NoError(t, err)
			require.Equal(t, s, read)

			require.NoError(t, Write(again, read))
			first, err := os.ReadFile(path)
			require.NoError(t, err)
			second, err := os.ReadFile(again)
			require.NoError(t, err)
			require.True(t, bytes.Equal(first, second), "%s: the same bytes", kind)
		}
	}
}

// The order of keys and tensors is nobody's business, and keys of others may be there.
func TestOrderDoesNotMatter(t *testing.T) {
	s := example(Affine)
	kv, tensors := s.gguf()
	slices.Reverse(kv)
	slices.Reverse(tensors)
	g, err := parse(encode(t, append(kv, KV{"general.name", "x"}, KV{"llsteer.later", int8(1)}), tensors))
	require.NoError(t, err)
	read, err := g.steering()
	require.NoError(t, err)
	require.Equal(t, s, read)
}

func TestValidate(t *testing.T) {
	for says, change := range map[string]func(*Steering){
		`the kind is "adds", expected add, affine, ablate or clamp`:      func(s *Steering) { s.Kind = "adds" },
		"c is NaN, expected a finite number":                             func(s *Steering) { s.Kind, s.Clamp = Clamp, math.NaN() },
		"c is +Inf, expected a finite number":                            func(s *Steering) { s.Kind, s.Clamp = Clamp, math.Inf(1) },
		"c is 2, and only clamp has one, not affine":                     func(s *Steering) { s.Clamp = 2 },
		"it steers no layer":                                             func(s *Steering) { s.Layers = nil },
		"it steers layer -1, expected a number from 0 on":                func(s *Steering) { s.Layers[0] = -1 },
		"its layers must ascend, but 3 follows 3":                        func(s *Steering) { s.Layers[0] = 3 },
		"its layers must ascend, but 2 follows 3":                        func(s *Steering) { s.Layers[2] = 2 },
		"it has parameters for 2 layers, expected 3":                     func(s *Steering) { s.Params = s.Params[:2] },
		"it has parameters for 3 layers, expected 1":                     func(s *Steering) { s.Shared = true },
		"its width is 0, expected a positive number":                     func(s *Steering) { s.Embd = 0 },
		"its matrices have rank 2, which is not that of the kind add":    func(s *Steering) { s.Kind = Add },
		"its matrices have rank 0, which is not that of the kind affine": func(s *Steering) { s.Params[0].Left, s.Params[0].Right = nil, nil },
		"layer 3: left has 1 rows and right 2, expected 2":               func(s *Steering) { s.Params[1].Left = s.Params[1].Left[:1] },
		"layer 0: left has 2 rows and right 1, expected 2":               func(s *Steering) { s.Params[0].Right = s.Params[0].Right[:1] },
		"layer 3: vector has 3 numbers, expected the width 4":            func(s *Steering) { s.Params[1].Vector = s.Params[1].Vector[1:] },
		"layer 11: left has 5 numbers, expected the width 4":             func(s *Steering) { s.Params[2].Left[1] = make([]float32, 5) },
		"layer 0: vector holds NaN at index 2, expected finite numbers":  func(s *Steering) { s.Params[0].Vector[2] = float32(math.NaN()) },
		"layer 3: left holds -Inf at index 0, expected finite numbers":   func(s *Steering) { s.Params[1].Left[1][0] = float32(math.Inf(-1)) },
		"layer 11: right holds +Inf at index 3, expected finite numbers": func(s *Steering) { s.Params[2].Right[0][3] = float32(math.Inf(1)) },
		"its recipe is not JSON":                                         func(s *Steering) { s.Recipe = "{" },
	} {
		s := example(Affine)
		require.NoError(t, s.Validate())
		change(s)
		require.EqualError(t, s.Validate(), says)

		dir := t.TempDir()
		err := Write(filepath.Join(dir, "out"), s)
		require.ErrorContains(t, err, says)
		var input *InputError
		require.False(t, errors.As(err, &input))
		requireOnly(t, dir)
	}
	s := sharedExample(Add)
	s.Params[0].Vector[1] = float32(math.NaN())
	require.EqualError(t, s.Validate(), "the shared parameters: vector holds NaN at index 1, expected finite numbers")
	require.Equal(t, s.Params[0], s.At(2))
}

// edit is a change to what a file holds.
type edit func(kv *[]KV, tensors *[]TensorData)

// set replaces the value of a key, or adds it.
func set(key string, value any) edit {
	return func(kv *[]KV, _ *[]TensorData) {
		for i := range *kv {
			if (*kv)[i].Key == key {
				(*kv)[i].Value = value
				return
			}
		}
		*kv = append(*kv, KV{key, value})
	}
}

func drop(key string) edit {
	return func(kv *[]KV, _ *[]TensorData) {
		*kv = slices.DeleteFunc(*kv, func(e KV) bool { return e.Key == key })
	}
}

func dropTensor(name string) edit {
	return func(_ *[]KV, tensors *[]TensorData) {
		*tensors = slices.DeleteFunc(*tensors, func(d TensorData) bool { return d.Name == name })
	}
}

// tensor replaces a tensor by one of zeros, or adds it.
func tensor(name string, t TensorType, shape ...int64) edit {
	return func(_ *[]KV, tensors *[]TensorData) {
		d := TensorData{name, t, shape, nil}
		for i := range *tensors {
			if (*tensors)[i].Name == name {
				(*tensors)[i] = d
				return
			}
		}
		*tensors = append(*tensors, d)
	}
}

// edited is a file made from an example; tensors without data get zeros.
func edited(t testing.TB, kv []KV, tensors []TensorData, edits ...edit) []byte {
	t.Helper()
	kv, tensors = slices.Clone(kv), slices.Clone(tensors)
	for _, e := range edits {
		e(&kv, &tensors)
	}
	for i, d := range tensors {
		if d.Data == nil {
			size, err := checkTensor(d.Name, d.Type, d.Shape)
			require.NoError(t, err)
			tensors[i].Data = bytes.NewReader(make([]byte, size))
		}
	}
	return encode(t, kv, tensors)
}

func TestSteeringFilesThatAreWrong(t *testing.T) {
	nan := func(name string, i int) edit {
		return func(_ *[]KV, tensors *[]TensorData) {
			for k, d := range *tensors {
				if d.Name == name {
					values := make([]float32, d.Shape[0])
					values[i] = float32(math.NaN())
					(*tensors)[k].Data = Floats(values)
				}
			}
		}
	}
	for says, e := range map[string]edit{
		`key "llsteer.version" is missing, expected u32`:                                               drop(keyVersion),
		"this is a steering file of version 2, expected 1":                                             set(keyVersion, uint32(2)),
		`key "llsteer.version" is of type string, expected u32`:                                        set(keyVersion, "1"),
		`key "llsteer.kind" is missing`:                                                                drop(keyKind),
		`the kind is "turn", expected add`:                                                             set(keyKind, "turn"),
		`key "llsteer.layers" is missing, expected array of u32`:                                       drop(keyLayers),
		`key "llsteer.layers" is of type array of i32, expected array of u32`:                          set(keyLayers, []int32{1}),
		"it steers no layer":                                                                           func(kv *[]KV, ts *[]TensorData) { set(keyLayers, []uint32{})(kv, ts); *ts = nil },
		`tensor "steering.5.vector" is missing`:                                                        set(keyLayers, []uint32{0, 3, 5, 11}),
		`tensor "steering.4294967295.vector" is missing`:                                               set(keyLayers, []uint32{math.MaxUint32}),
		`tensor "steering.11.`:                                                                         set(keyLayers, []uint32{0, 3}),
		"its layers must ascend, but 0 follows 3":                                                      set(keyLayers, []uint32{3, 0, 11}),
		`key "llsteer.shared" is missing, expected bool`:                                               drop(keyShared),
		`key "llsteer.prompt_only" is of type u8, expected bool`:                                       set(keyPromptOnly, uint8(1)),
		`tensor "steering.shared.vector" is missing`:                                                   set(keyShared, true),
		`key "llsteer.model.architecture" is of type u32, expected string`:                             set(keyModelArch, uint32(1)),
		`tensor "steering.0.vector" is F32 of shape [4], expected F32 with 1 dimensions and rows of 5`: set(keyModelEmbd, uint32(5)),
		`rows of 0`:                           set(keyModelEmbd, uint32(0)),
		`its recipe is not JSON`:              set(keyRecipe, "no"),
		`tensor "steering.3.left" is missing`: dropTensor("steering.3.left"),
		`tensor "steering.3.left" is F32 of shape [4], expected F32 with 2 dimensions`: tensor("steering.3.left", F32, 4),
		`tensor "steering.3.left" is F16 of shape [4 2]`:                               tensor("steering.3.left", F16, 4, 2),
		"layer 3: left has 3 rows and right 2, expected 2":                             tensor("steering.3.left", F32, 4, 3),
		`tensor "steering.7.vector" is none of this steering's`:                        tensor("steering.7.vector", F32, 4),
		`tensor "steering.00.vector" is none of this steering's`:                       tensor("steering.00.vector", F32, 4),
		"layer 3: vector holds NaN at index 2":                                         nan("steering.3.vector", 2),
		`key "llsteer.clamp" is missing, expected f64`:                                 set(keyKind, "clamp"),
	} {
		kv, tensors := example(Affine).gguf()
		g, err := parse(edited(t, kv, tensors, e))
		require.NoError(t, err)
		_, err = g.steering()
		requireInputError(t, err, "model.gguf: ", says)
	}
}

// controlVector is what repeng and llama.cpp's own generator write.
func controlVector() ([]KV, []TensorData) {
	return []KV{
			{"general.architecture", "controlvector"},
			{"controlvector.model_hint", "gemma2"},
			{"controlvector.layer_count", uint32(3)},
		}, []TensorData{
			{"direction.12", F32, []int64{4}, Floats([]float32{12, 0, 0, 0})},
			{"direction.1", F32, []int64{4}, Floats([]float32{1, 0, 0, 0})},
			{"direction.2", F32, []int64{4}, Floats([]float32{2, 0, 0, 0})},
		}
}

func TestControlVectorsAreRead(t *testing.T) {
	read := func(edits ...edit) *Steering {
		kv, tensors := controlVector()
		g, err := parse(edited(t, kv, tensors, edits...))
		require.NoError(t, err)
		s, err := g.steering()
		require.NoError(t, err)
		return s
	}
	expected := &Steering{
		// direction.N acts at the output of block N
		Kind: Add, Layers: []int{2, 3, 13}, Arch: "gemma2", Embd: 4,
		Params: []Parameters{{Vector: []float32{1, 0, 0, 0}}, {Vector: []float32{2, 0, 0, 0}}, {Vector: []float32{12, 0, 0, 0}}},
	}
	require.Equal(t, expected, read())
	require.Equal(t, expected, read(set("controlvector.layer_count", int32(3))))
	require.Equal(t, expected, read(set("general.alignment", uint32(64)), set("controlvector.method", "pca")))
	expected.Arch = ""
	require.Equal(t, expected, read(drop("controlvector.model_hint"), drop("controlvector.layer_count")))
	require.Equal(t, expected, read(drop("controlvector.model_hint"), drop("general.architecture")), "llama.cpp looks at the tensors only")
	expected.Arch = "llama"
	require.Equal(t, expected, read(set("controlvector.model_hint", "mistral")), "a name of the transformers library")

	path := filepath.Join(t.TempDir(), "imported.gguf")
	require.NoError(t, Write(path, expected))
	again, err := Read(path)
	require.NoError(t, err)
	require.Equal(t, expected, again)
}

func TestControlVectorsThatAreWrong(t *testing.T) {
	inf := func(_ *[]KV, tensors *[]TensorData) {
		(*tensors)[0].Data = Floats([]float32{0, 0, 0, float32(math.Inf(1))})
	}
	for says, e := range map[string]edit{
		"this control vector holds no direction":                                                           func(_ *[]KV, ts *[]TensorData) { *ts = nil },
		`tensor "direction.0" does not belong in a control vector: directions count from 1`:                tensor("direction.0", F32, 4),
		`tensor "direction.-1" does not belong`:                                                            tensor("direction.-1", F32, 4),
		`tensor "direction.2147483647" does not belong`:                                                    tensor("direction.2147483647", F32, 4),
		`tensor "direction.99999999999999999999" does not belong`:                                          tensor("direction.99999999999999999999", F32, 4),
		`tensor "direction.01" does not belong`:                                                            tensor("direction.01", F32, 4),
		`tensor "direction." does not belong`:                                                              tensor("direction.", F32, 4),
		`tensor "direction.1.weight" does not belong`:                                                      tensor("direction.1.weight", F32, 4),
		`tensor "bias.1" does not belong in a control vector, expected direction.1, direction.2 and so on`: tensor("bias.1", F32, 4),
		`tensor "direction.2" is F16 of shape [4], expected one row of F32`:                                tensor("direction.2", F16, 4),
		`tensor "direction.2" is F32 of shape [4 2], expected one row of F32`:                              tensor("direction.2", F32, 4, 2),
		`tensor "direction.2" has 5 numbers, and "direction.12" has 4`:                                     tensor("direction.2", F32, 5),
		`key "controlvector.model_hint" is of type u32, expected string`:                                   set("controlvector.model_hint", uint32(1)),
		"layer 13: vector holds +Inf at index 3":                                                           inf,
		`key "general.architecture" is of type array of string, expected string`:                           set("general.architecture", []string{"controlvector"}),
	} {
		kv, tensors := controlVector()
		g, err := parse(edited(t, kv, tensors, e))
		require.NoError(t, err)
		_, err = g.steering()
		requireInputError(t, err, "model.gguf: ", says)
	}
}

func TestModelsAreNoSteerings(t *testing.T) {
	_, err := Read(demoModel)
	requireInputError(t, err, demoModel+`: this is a model or part of one (architecture "gemma2"), expected a steering`, "models are given with -m, steerings with -s")

	g, err := parse(encode(t, nil, nil))
	require.NoError(t, err)
	_, err = g.steering()
	requireInputError(t, err, "this is neither a steering nor a control vector: it has no general.architecture")
}

func TestCheckFits(t *testing.T) {
	s := example(Add)
	require.NoError(t, s.CheckFits("gemma2", 4, 12))
	requireInputError(t, s.CheckFits("llama", 4, 12), "the steering is for gemma2 models (made on a model), and this model is llama")
	requireInputError(t, s.CheckFits("gemma2", 5, 12), "the steering is for models of width 4 (made on a model), and this model's width is 5")
	requireInputError(t, s.CheckFits("gemma2", 4, 10), "the steering is for layer 11 (made on a model), and this model has layers 0 to 9")
	require.NoError(t, s.CheckFits("gemma2", 4, 11), "the output of the last block")
	s.Arch, s.Model = "", ""
	require.NoError(t, s.CheckFits("llama", 4, 12))
	requireInputError(t, s.CheckFits("llama", 3, 12), "made on an unnamed model")
}

func TestParseActive(t *testing.T) {
	for arg, expected := range map[string]struct {
		path     string
		strength float64
	}{
		"a.gguf":         {"a.gguf", 1},
		"a.gguf:2":       {"a.gguf", 2},
		"a.gguf:-0.5":    {"a.gguf", -0.5},
		"a.gguf:1e-3":    {"a.gguf", 1e-3},
		"a.gguf:0":       {"a.gguf", 0},
		"a.gguf:":        {"a.gguf:", 1},
		"a.gguf:inf":     {"a.gguf:inf", 1},
		"a.gguf:nan":     {"a.gguf:nan", 1},
		"a.gguf:1e999":   {"a.gguf:1e999", 1},
		"a.gguf: 2":      {"a.gguf: 2", 1},
		"dir:3/a.gguf":   {"dir:3/a.gguf", 1},
		"dir:3/a.gguf:4": {"dir:3/a.gguf", 4},
		"a:1:2":          {"a:1", 2},
		":2":             {"", 2},
		"":               {"", 1},
	} {
		path, strength := ParseActive(arg)
		require.Equal(t, expected.path, path, arg)
		require.Equal(t, expected.strength, strength, arg)
	}
}

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	c, err := Inspect(demoModel)
	require.NoError(t, err)
	require.NotNil(t, c.Model)
	require.Nil(t, c.Steering)

	s := example(Clamp)
	path := filepath.Join(dir, "s.gguf")
	require.NoError(t, Write(path, s))
	c, err = Inspect(path)
	require.NoError(t, err)
	require.Equal(t, &Contents{Steering: s}, c)

	kv, tensors := controlVector()
	path = filepath.Join(dir, "c.gguf")
	require.NoError(t, WriteGGUF(path, kv, tensors))
	c, err = Inspect(path)
	require.NoError(t, err)
	require.True(t, c.ControlVector)
	require.Equal(t, []int{2, 3, 13}, c.Steering.Layers)

	_, err = Inspect(filepath.Join(dir, "none"))
	requireInputError(t, err, "no such file")
}

func FuzzReadSteering(f *testing.F) {
	for _, kind := range []Kind{Add, Affine, Ablate, Clamp} {
		for _, s := range []*Steering{example(kind), sharedExample(kind)} {
			kv, tensors := s.gguf()
			f.Add(encode(f, kv, tensors))
		}
	}
	kv, tensors := controlVector()
	b := encode(f, kv, tensors)
	f.Add(b)
	b = bytes.Clone(b)
	binary.LittleEndian.PutUint64(b[8:], 1<<40)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := allocated()
		g, err := parse(b)
		var s *Steering
		if err == nil {
			s, err = g.steering()
		}
		require.LessOrEqual(t, allocated()-before, allocationBound(len(b)))
		if err != nil {
			requireInputError(t, err)
			return
		}
		kv, tensors := s.gguf()
		written := encode(t, kv, tensors)
		g, err = parse(written)
		require.NoError(t, err)
		again, err := g.steering()
		require.NoError(t, err)
		require.Equal(t, s, again)
		kv, tensors = again.gguf()
		require.True(t, bytes.Equal(written, encode(t, kv, tensors)))
	})
}
