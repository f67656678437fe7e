package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/cobra"
)

func (p *program) inspect() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "what a model, steering or control-vector file holds",
		Long: `Says what a GGUF file holds: a model, a steering of llsteer or a control vector of
llama.cpp. The file is checked as it is before use; the weights are not read.
"demo" is the embedded model.`,
		Example: `  llsteer inspect demo
  llsteer optimize -m demo demo -o spanish.gguf
  llsteer inspect spanish.gguf`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]string{"gguf"}, cobra.ShellCompDirectiveFilterFileExt),
		RunE: func(_ *cobra.Command, args []string) error {
			path, remove, err := modelFile(args[0])
			if err != nil {
				return err
			}
			defer remove()
			contents, err := loader.Inspect(path)
			if err != nil {
				return err
			}
			view := inspection{File: args[0]}
			if contents.Model != nil {
				view.Model = viewModel(contents.Model)
			} else {
				view.Steering = viewSteering(contents)
			}
			if p.json {
				return p.printJSON(view)
			}
			return p.print(view.table())
		},
	}
}

// An inspection is what a file holds: a model or a steering.
type inspection struct {
	File     string        `json:"file"`
	Model    *modelView    `json:"model,omitempty"`
	Steering *steeringView `json:"steering,omitempty"`
}

type modelView struct {
	Name         string     `json:"name"`
	Arch         string     `json:"arch"`
	Quantization string     `json:"quantization"`
	Layers       int        `json:"n_layer"`
	Embd         int        `json:"n_embd"`
	Vocab        int        `json:"n_vocab"`
	TrainContext int        `json:"n_ctx_train"`
	ChatTemplate bool       `json:"chat_template"`
	Parts        int        `json:"parts"`
	Bytes        int64      `json:"tensor_bytes"`
	Types        []typeView `json:"types"`
}

type typeView struct {
	Type    string `json:"type"`
	Tensors int    `json:"tensors"`
	Bytes   int64  `json:"bytes"`
}

func viewModel(m *loader.ModelFile) *modelView {
	v := &modelView{m.Name, m.Arch, m.Quantization, m.Layers, m.Embd, m.Vocab, m.TrainContext, m.ChatTemplate != "", len(m.Paths), m.TotalBytes, []typeView{}}
	for _, t := range m.Types {
		v.Types = append(v.Types, typeView{t.Type.String(), t.Tensors, t.Bytes})
	}
	return v
}

type steeringView struct {
	ControlVector bool               `json:"control_vector"`
	Kind          loader.Kind        `json:"kind"`
	Clamp         *float64           `json:"clamp,omitempty"`
	Rank          int                `json:"rank,omitempty"`
	Layers        []int              `json:"layers"`
	Shared        bool               `json:"shared"`
	PromptOnly    bool               `json:"only_hook_prompt"`
	Norms         map[string]float64 `json:"norms"` // by layer, or "shared"
	Arch          string             `json:"arch,omitempty"`
	Embd          int                `json:"n_embd"`
	Model         string             `json:"model,omitempty"`
	Recipe        json.RawMessage    `json:"recipe,omitempty"`
	Origin        string             `json:"origin,omitempty"`
}

func viewSteering(c *loader.Contents) *steeringView {
	s := c.Steering
	v := &steeringView{
		ControlVector: c.ControlVector, Kind: s.Kind, Rank: s.Rank(), Layers: s.Layers, Shared: s.Shared, PromptOnly: s.PromptOnly,
		Norms: map[string]float64{}, Arch: s.Arch, Embd: s.Embd, Model: s.Model, Recipe: json.RawMessage(s.Recipe), Origin: s.Origin,
	}
	if s.Kind == loader.Clamp {
		v.Clamp = &s.Clamp
	}
	for i := range s.Params {
		v.Norms[paramsKey(s, i)] = norm(s.Params[i].Vector)
	}
	return v
}

// paramsKey names the i-th parameters of a steering as reports do.
func paramsKey(s *loader.Steering, i int) string {
	if s.Shared {
		return "shared"
	}
	return strconv.Itoa(s.Layers[i])
}

func norms(rows [][]float32) []float64 {
	all := make([]float64, len(rows))
	for i, row := range rows {
		all[i] = norm(row)
	}
	return all
}

func norm(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

// table is the inspection for people.
func (i inspection) table() string {
	var b strings.Builder
	row := func(name string, value any) {
		if value != "" {
			fmt.Fprintf(&b, "%-16s %v\n", name, value)
		}
	}
	row("file", i.File)
	if m := i.Model; m != nil {
		row("holds", "a model")
		row("name", m.Name)
		row("architecture", m.Arch)
		row("layers", fmt.Sprintf("0 to %d", m.Layers-1))
		row("width", m.Embd)
		row("vocabulary", m.Vocab)
		row("context", m.TrainContext)
		row("chat template", map[bool]string{true: "yes", false: "no"}[m.ChatTemplate])
		row("quantization", m.Quantization)
		if m.Parts > 1 {
			row("parts", m.Parts)
		}
		for _, t := range m.Types {
			row("  "+t.Type, fmt.Sprintf("%d tensors, %.1f MB", t.Tensors, float64(t.Bytes)/1e6))
		}
		return b.String()
	}
	s := i.Steering
	row("holds", map[bool]string{true: "a control vector of llama.cpp", false: "a steering"}[s.ControlVector])
	row("kind", s.Kind)
	if s.Clamp != nil {
		row("c", *s.Clamp)
	}
	if s.Rank > 0 {
		row("rank", s.Rank)
	}
	row("layers", strings.Trim(fmt.Sprint(s.Layers), "[]"))
	row("tokens", map[bool]string{true: "the prompt's", false: "all"}[s.PromptOnly])
	row("width", s.Embd)
	row("architecture", s.Arch)
	row("made on", s.Model)
	if s.Shared {
		row("norm, shared", fmt.Sprintf("%.4f", s.Norms["shared"]))
	} else {
		for _, l := range s.Layers {
			row(fmt.Sprintf("norm at %d", l), fmt.Sprintf("%.4f", s.Norms[strconv.Itoa(l)]))
		}
	}
	row("made of", s.Origin)
	row("recipe", string(s.Recipe))
	return b.String()
}
