package loader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// expressible is a steering that a control vector can express.
func expressible() *Steering {
	s := example(Add)
	s.Layers, s.PromptOnly, s.Origin = []int{2, 7, 12}, false, "a.gguf:0.5 + b.gguf:1"
	return s
}

func TestControlVectorsComeBack(t *testing.T) {
	dir := t.TempDir()
	bare := expressible()
	bare.Arch, bare.Model, bare.Recipe, bare.Origin = "", "", "", ""
	for _, s := range []*Steering{expressible(), bare} {
		path, again := filepath.Join(dir, "vector"), filepath.Join(dir, "again")
		require.NoError(t, WriteControlVector(path, s))
		read, err := Read(path)
		require.NoError(t, err)
		require.Equal(t, s, read)

		require.NoError(t, WriteControlVector(again, read))
		first, err := os.ReadFile(path)
		require.NoError(t, err)
		second, err := os.ReadFile(again)
		require.NoError(t, err)
		require.Equal(t, first, second)
	}
}

// What llama.cpp's loader asks for: only tensors direction.N with N from 1, F32, one row each, of
// one length. A shared vector becomes one for each layer.
func TestControlVectorsAreLlamaCpps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vector")
	s := expressible()
	s.Shared, s.Params = true, s.Params[:1]
	require.NoError(t, WriteControlVector(path, s))
	require.NoError(t, openGGUF(path, func(g *ggufFile) error {
		require.Equal(t, "controlvector", g.get("general.architecture"))
		require.Equal(t, "gemma2", g.get("controlvector.model_hint"))
		require.Equal(t, uint32(3), g.get("controlvector.layer_count"))
		var names []string
		for _, tensor := range g.tensors {
			names = append(names, tensor.Name)
			require.Equal(t, F32, tensor.Type)
			require.Equal(t, []int64{4}, tensor.Shape)
			values, err := g.floats(tensor)
			require.NoError(t, err)
			require.Equal(t, s.Params[0].Vector, values)
		}
		require.Equal(t, []string{"direction.1", "direction.6", "direction.11"}, names)
		return nil
	}))
}

func TestWhatNoControlVectorExpresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vector")
	for _, kind := range []Kind{Affine, Ablate, Clamp} {
		s := example(kind)
		s.Layers, s.PromptOnly = []int{2, 7, 12}, false
		requireInputError(t, WriteControlVector(path, s), "can only add")
	}
	s := expressible()
	s.PromptOnly = true
	requireInputError(t, WriteControlVector(path, s), "every token")
	for _, layer := range []int{0, 1} {
		s := expressible()
		s.Layers[0] = layer
		requireInputError(t, WriteControlVector(path, s), "input of layer 2")
	}
	s = expressible()
	s.Params[0].Vector = s.Params[0].Vector[1:]
	require.ErrorContains(t, WriteControlVector(path, s), "width")
	require.NoFileExists(t, path)
}

func TestNumberings(t *testing.T) {
	dir := t.TempDir()
	write := func(first string) string {
		path := filepath.Join(dir, first)
		require.NoError(t, WriteGGUF(path, []KV{{"general.architecture", "controlvector"}}, []TensorData{
			{first, F32, []int64{1}, Floats([]float32{1})}, {"direction.12", F32, []int64{1}, Floats([]float32{12})},
		}))
		return path
	}
	for numbering, layers := range map[Numbering][]int{AsLlamaCpp: {2, 13}, OutputFromZero: {2, 13}, OneLate: {1, 12}} {
		s, err := ReadControlVector(write("direction.1"), numbering)
		require.NoError(t, err)
		require.Equal(t, layers, s.Layers)
		require.Equal(t, []Parameters{{Vector: []float32{1}}, {Vector: []float32{12}}}, s.Params)
	}
	for _, numbering := range []Numbering{AsLlamaCpp, OneLate} {
		_, err := ReadControlVector(write("direction.0"), numbering)
		requireInputError(t, err, "count from 1")
	}
	s, err := ReadControlVector(write("direction.0"), OutputFromZero)
	require.NoError(t, err)
	require.Equal(t, []int{1, 13}, s.Layers)
	_, err = ReadControlVector(write("direction.-1"), OutputFromZero)
	requireInputError(t, err, "count from 0")

	path := filepath.Join(dir, "steering")
	require.NoError(t, Write(path, expressible()))
	_, err = ReadControlVector(path, AsLlamaCpp)
	requireInputError(t, err, "no control vector")
}
