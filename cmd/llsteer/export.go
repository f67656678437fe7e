package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (p *program) export() *cobra.Command {
	var model modelFlags
	var out string
	var approximate, noRecipe bool
	var prompts, heldOut []string
	cmd := &cobra.Command{
		Use:   "export FILE[:STRENGTH]... -o CVEC",
		Short: "a steering as a control vector of llama.cpp",
		Long: `Writes a steering, or the sum of several at their strengths, as a control vector that
llama-server and other programs on llama.cpp load. Layer l becomes direction.(l-1):
llama.cpp adds direction.N at the output of block N, which is the input of block N+1.

What a control vector cannot express is refused: layers 0 and 1, clamps, ablations,
matrices, and steering the prompt alone. With --approximate clamps, ablations and
matrices become the vector nearest to them: the mean of what they change at the tokens
of some prompts. How far that is from the steering itself is measured on other texts.`,
		Example: `  llsteer optimize -m demo demo -o spanish.gguf
  llsteer export spanish.gguf:0.9 -o spanish-cvec.gguf
  llama-server -m MODEL.gguf --control-vector spanish-cvec.gguf`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"gguf"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case out == "":
				return badInput("", "--out is missing")
			case approximate && model.path == "":
				return badInput("add -m MODEL", "--approximate needs the model")
			case !approximate && len(prompts)+len(heldOut) > 0:
				return badInput("add --approximate", "--prompt and --held-out are for --approximate")
			case !approximate && model.chat:
				return badInput("add --approximate", "--chat is for --approximate")
			}
			active, err := readSteerings(args)
			if err != nil {
				return err
			}
			inputs := []string{model.path}
			for _, arg := range args {
				path, _ := loader.ParseActive(arg)
				inputs = append(inputs, path)
			}
			if err := checkOutputs(map[string]string{"--out": out}, inputs...); err != nil {
				return err
			}
			e := exporting{args: args, active: active}
			if err := e.check(approximate); err != nil {
				return err
			}
			additive := active
			var result exported
			if model.path != "" {
				if prompts, err = p.texts("--prompt", prompts); err != nil {
					return err
				}
				if heldOut, err = p.texts("--held-out", heldOut); err != nil {
					return err
				}
				m, err := p.open(cmd.Context(), &model)
				if err != nil {
					return err
				}
				defer m.Close()
				if err := fitSteerings(m, args, active); err != nil {
					return err
				}
				if approximate {
					a := approximation{model: m, flags: &model, active: active, prompts: prompts, heldOut: heldOut}
					if additive, err = a.run(cmd.Context()); err != nil {
						return err
					}
					result.Approximation = &a.result
				}
			}
			vector, err := e.sum(additive)
			if err != nil {
				return err
			}
			if noRecipe {
				vector.Recipe = ""
			}
			if err := loader.WriteControlVector(out, vector); err != nil {
				return err
			}
			e.describe(&result, vector, additive)
			result.File = out
			if p.json {
				return p.printJSON(result)
			}
			return p.print(result.text())
		},
	}
	addFlags(cmd, "Export", func(flags *pflag.FlagSet) {
		flags.StringVarP(&out, "out", "o", "", "control vector to write, `FILE` (required)")
		flags.BoolVar(&noRecipe, "no-recipe", false, "leave the job, its prompts included, out of the control vector")
		flags.BoolVar(&approximate, "approximate", false, "clamps, ablations and matrices as the vector nearest to them; needs -m")
		flags.StringArrayVarP(&prompts, "prompt", "p", nil, "with --approximate, `TEXT` over whose tokens the mean is taken; repeatable (default the steering's own prompts)")
		flags.StringArrayVar(&heldOut, "held-out", nil, "with --approximate, `TEXT` on which the difference is measured; repeatable (default some built-in sentences)")
	})
	model.add(cmd)
	return cmd
}

// An exporting makes one control vector of several steerings.
type exporting struct {
	args   []string // FILE[:STRENGTH]
	active []ggmlsteer.Active
}

// check refuses steerings that are for different models, and what a control
// vector cannot express.
func (e *exporting) check(approximate bool) error {
	first := e.active[0].Steering
	for i, a := range e.active {
		s := a.Steering
		if s.Embd != first.Embd {
			return badInput("", "%s is for models of width %d, and %s of width %d", e.args[i], s.Embd, e.args[0], first.Embd)
		}
		for j, other := range e.active[:i] {
			if s.Arch != "" && other.Steering.Arch != "" && s.Arch != other.Steering.Arch {
				return badInput("", "%s is for %s models, and %s for %s models", e.args[i], s.Arch, e.args[j], other.Steering.Arch)
			}
		}
		checked := s
		if approximate { // the kind is what it mends
			checked = &loader.Steering{Kind: loader.Add, Layers: s.Layers, PromptOnly: s.PromptOnly}
		}
		if err := checked.CheckControlVector(); err != nil {
			return withPlace(err, e.args[i])
		}
	}
	return nil
}

// withPlace puts a file's name before an input error.
func withPlace(err error, place string) error {
	if input, ok := err.(*loader.InputError); ok {
		return &loader.InputError{Message: place + ": " + input.Message, Hint: input.Hint}
	}
	return fmt.Errorf("%s: %w", place, err)
}

// sum adds steerings of the kind add at their strengths.
func (e *exporting) sum(active []ggmlsteer.Active) (*loader.Steering, error) {
	first := active[0].Steering
	vector := &loader.Steering{Kind: loader.Add, Embd: first.Embd}
	sums := map[int][]float64{}
	for _, a := range active {
		if vector.Arch == "" {
			vector.Arch = a.Steering.Arch
		}
		for i, l := range a.Steering.Layers {
			if sums[l] == nil {
				sums[l] = make([]float64, first.Embd)
				vector.Layers = append(vector.Layers, l)
			}
			for j, x := range a.Steering.At(i).Vector {
				sums[l][j] += a.Strength * float64(x)
			}
		}
	}
	slices.Sort(vector.Layers)
	for _, l := range vector.Layers {
		row := make([]float32, first.Embd)
		for i, x := range sums[l] {
			row[i] = float32(x)
			if math.IsInf(float64(row[i]), 0) {
				return nil, badInput("smaller strengths", "the sum at layer %d is beyond what a float32 holds", l)
			}
		}
		vector.Params = append(vector.Params, loader.Parameters{Vector: row})
	}
	vector.Model = first.Model
	if len(active) == 1 {
		vector.Recipe = first.Recipe
	}
	for _, a := range active {
		if a.Steering.Model != vector.Model {
			vector.Model = ""
		}
	}
	vector.Origin = e.origin()
	return vector, nil
}

// origin tells what a control vector is made of. One that holds just what its only
// file does keeps the file's own: it is the same vector in another dress.
func (e *exporting) origin() string {
	only := e.active[0]
	if len(e.active) == 1 && only.Strength == 1 && only.Steering.Kind == loader.Add {
		return only.Steering.Origin
	}
	var parts []string
	for i, a := range e.active {
		path, _ := loader.ParseActive(e.args[i])
		part := filepath.Base(path) + ":" + strconv.FormatFloat(a.Strength, 'g', -1, 64)
		if a.Steering.Kind != loader.Add {
			part += " (" + string(a.Steering.Kind) + ", its mean)"
		}
		if a.Steering.Origin != "" {
			part += " [" + a.Steering.Origin + "]"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " + ")
}

// exported is the report of an export.
type exported struct {
	File          string            `json:"file"`
	Arch          string            `json:"arch,omitempty"`
	Embd          int               `json:"n_embd"`
	Directions    []direction       `json:"directions"`
	Sources       []source          `json:"sources"`
	Cosines       []cosine          `json:"cosines"`
	Approximation *approximatedView `json:"approximation,omitempty"`
}

type direction struct {
	Direction int     `json:"direction"` // of the tensor's name
	Layer     int     `json:"layer"`
	Norm      float64 `json:"norm"`
}

type source struct {
	File     string      `json:"file"`
	Strength float64     `json:"strength"`
	Kind     loader.Kind `json:"kind"`
	Layers   []int       `json:"layers"`
}

// A cosine is that of two of the files' vectors at a layer that both steer, at
// strength 1 each.
type cosine struct {
	Files  [2]string `json:"files"`
	Layer  int       `json:"layer"`
	Cosine float64   `json:"cosine"`
}

// describe fills in all but the file and the approximation.
func (e *exporting) describe(result *exported, vector *loader.Steering, additive []ggmlsteer.Active) {
	result.Arch, result.Embd, result.Cosines = vector.Arch, vector.Embd, []cosine{}
	for i, l := range vector.Layers {
		result.Directions = append(result.Directions, direction{loader.DirectionOf(l), l, norm(vector.Params[i].Vector)})
	}
	for i, a := range e.active {
		path, _ := loader.ParseActive(e.args[i])
		result.Sources = append(result.Sources, source{path, a.Strength, a.Steering.Kind, a.Steering.Layers})
	}
	for i, a := range additive {
		for j, b := range additive[:i] {
			for k, l := range a.Steering.Layers {
				at := slices.Index(b.Steering.Layers, l)
				if at < 0 {
					continue
				}
				if c, ok := cosineOf(a.Steering.At(k).Vector, b.Steering.At(at).Vector); ok {
					result.Cosines = append(result.Cosines, cosine{[2]string{result.Sources[j].File, result.Sources[i].File}, l, c})
				}
			}
		}
	}
}

// cosineOf has none where one of the vectors is zero.
func cosineOf(a, b []float32) (float64, bool) {
	product := 0.0
	for i := range a {
		product += float64(a[i]) * float64(b[i])
	}
	lengths := norm(a) * norm(b)
	return product / lengths, lengths > 0
}

func (r *exported) text() string {
	var b strings.Builder
	for _, d := range r.Directions {
		fmt.Fprintf(&b, "layer %d (the input of block %d) is direction.%d (the output of block %d), norm %.4f\n", d.Layer, d.Layer, d.Direction, d.Direction, d.Norm)
	}
	for _, c := range r.Cosines {
		fmt.Fprintf(&b, "cosine of %s and %s at layer %d: %.4f\n", c.Files[0], c.Files[1], c.Layer, c.Cosine)
	}
	if a := r.Approximation; a != nil {
		b.WriteString(a.text())
	}
	fmt.Fprintf(&b, "to use it: llama-server -m MODEL.gguf --control-vector %s\n", shellWord(r.File))
	return b.String()
}

// shellWord quotes a path where a shell would split or read it.
func shellWord(path string) string {
	plain := func(r rune) bool {
		return strings.ContainsRune("/._-+=:,@%", r) || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if path != "" && !strings.ContainsFunc(path, func(r rune) bool { return !plain(r) }) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
