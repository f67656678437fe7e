package loader

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// requireOnly checks that a folder holds these files and nothing else.
func requireOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var actual []string
	for _, e := range entries {
		actual = append(actual, e.Name())
	}
	require.ElementsMatch(t, names, actual)
}

func TestWriteGGUFRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.gguf")
	tensor := func(name string, size int, shape ...int64) []TensorData {
		return []TensorData{{name, F32, shape, bytes.NewReader(make([]byte, size))}}
	}
	for says, c := range map[string]struct {
		kv      []KV
		tensors []TensorData
	}{
		`key "a" occurs twice`:                    {kv: []KV{{"a", "b"}, {"a", "c"}}},
		"the key is empty":                        {kv: []KV{{"", "b"}}},
		`key "a": GGUF has no type for a Go int`:  {kv: []KV{{"a", 1}}},
		`key "a": no value`:                       {kv: []KV{{"a", nil}}},
		`GGUF has no type for a Go []string`:      {kv: []KV{{"a", [][]string{}}}},
		`general.alignment is 7`:                  {kv: []KV{{"general.alignment", uint32(7)}}},
		`tensor "a" occurs twice`:                 {tensors: append(tensor("a", 4, 1), tensor("a", 4, 1)...)},
		`tensor "a" has the shape [0]`:            {tensors: tensor("a", 0, 0)},
		"has a name of 64 bytes":                  {tensors: tensor(strings.Repeat("n", 64), 4, 1)},
		`the data of tensor "a" is not of the 8`:  {tensors: tensor("a", 7, 2)},
		`the data of tensor "a" is not of the 12`: {tensors: tensor("a", 13, 3)},
	} {
		err := WriteGGUF(path, c.kv, c.tensors)
		require.ErrorContains(t, err, says)
		var input *InputError
		require.False(t, errors.As(err, &input), "not the user's to mend: %v", err)
		requireOnly(t, dir)
	}
}

func TestWriteFileIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	put := func(text string, end error) error {
		return WriteFile(path, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			require.NoError(t, err)
			return end
		})
	}
	failed := errors.New("no more")

	require.ErrorIs(t, put("half", failed), failed)
	requireOnly(t, dir)

	require.NoError(t, put("first", nil))
	require.NoError(t, os.Chmod(path, 0o640))
	require.ErrorIs(t, put(strings.Repeat("half", 1<<16), failed), failed)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "first", string(b))

	require.NoError(t, put("second", nil))
	b, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "second", string(b))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode())
	requireOnly(t, dir, "out")
}

func TestWriteFileFollowsALink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(target, []byte("old"), 0o666))
	require.NoError(t, os.Symlink("target", link))
	require.NoError(t, WriteFile(link, func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }))
	b, err := os.ReadFile(target)
	require.NoError(t, err)
	require.Equal(t, "new", string(b))
	requireOnly(t, dir, "target", "link")
}

func TestUnwritableOutput(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o666))
	for path, says := range map[string]string{
		dir:                        "cannot be written: this is not a file but a folder",
		"/dev/null":                "cannot be written: this is not a file but a device",
		filepath.Join(dir, "a/b"):  "cannot write this file: no such file or directory",
		filepath.Join(file, "b"):   "cannot write this file: not a directory",
		filepath.Join(dir, "new/"): "",
		dir + "/none/":             "cannot write this file: no such file or directory",
		"":                         "cannot write this file",
		"/proc/self/none":          "cannot write this file",
		filepath.Join(dir, "\x00"): "cannot write this file",
		filepath.Join(dir, strings.Repeat("n", 300)): "cannot write this file: file name too long",
	} {
		err := CheckOutput(path)
		if says == "" {
			require.NoError(t, err)
			continue
		}
		requireInputError(t, err, path, says)
		requireInputError(t, WriteFile(path, func(io.Writer) error { t.Error("called"); return nil }), says)
		requireInputError(t, Write(path, example(Add)), says)
	}
	requireOnly(t, dir, "file")
}

func TestCheckOutputLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	require.NoError(t, CheckOutput(path))
	requireOnly(t, dir)
	require.NoError(t, os.WriteFile(path, []byte("kept"), 0o666))
	require.NoError(t, CheckOutput(path))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "kept", string(b))
}
