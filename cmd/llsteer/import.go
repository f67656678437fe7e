package main

import (
	"fmt"
	"strings"

	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// numberings are the values of --numbering.
var numberings = map[string]loader.Numbering{
	"llama.cpp":         loader.AsLlamaCpp,
	"repeng":            loader.AsLlamaCpp,
	"easysteer":         loader.OutputFromZero,
	"cvector-generator": loader.OneLate,
	"jukofyork":         loader.OneLate,
}

func (p *program) importVector() *cobra.Command {
	var out string
	numbering := "llama.cpp"
	cmd := &cobra.Command{
		Use:   "import CVEC -o FILE",
		Short: "a control vector of llama.cpp as a steering file",
		Long: `Writes a control vector as a steering file. llama.cpp adds direction.N at the output of
block N, which is the input of block N+1: it becomes layer N+1. repeng means the same, and so does
EasySteer, whose files may have a direction.0 that llama.cpp refuses (--numbering easysteer).

llama.cpp's own cvector-generator and the control vectors of jukofyork name what they
found at the output of block N-1 direction.N, so that llama.cpp uses it one block late.
No file says who wrote it: with --numbering cvector-generator or jukofyork the vector
acts where it was found, without the flag as llama.cpp would use it.`,
		Example: `  llsteer optimize -m demo demo -o spanish.gguf
  llsteer export spanish.gguf -o cvec.gguf
  llsteer import cvec.gguf -o again.gguf
  llsteer inspect again.gguf`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"gguf"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return badInput("", "--out is missing")
			}
			steering, err := loader.ReadControlVector(args[0], numberings[numbering])
			if err != nil {
				return err
			}
			if err := checkOutputs(map[string]string{"--out": out}, args[0]); err != nil {
				return err
			}
			if err := loader.Write(out, steering); err != nil {
				return err
			}
			result := imported{File: out, Numbering: numbering, Arch: steering.Arch, Embd: steering.Embd}
			for i, l := range steering.Layers {
				n := loader.DirectionOf(l)
				if numberings[numbering] == loader.OneLate {
					n++
				}
				result.Directions = append(result.Directions, direction{n, l, norm(steering.Params[i].Vector)})
			}
			if p.json {
				return p.printJSON(result)
			}
			var b strings.Builder
			for _, d := range result.Directions {
				fmt.Fprintf(&b, "direction.%d steers the input of layer %d, norm %.4f\n", d.Direction, d.Layer, d.Norm)
			}
			if !cmd.Flags().Changed("numbering") {
				p.note("read as llama.cpp uses it; a file by cvector-generator or jukofyork was made one block earlier, which --numbering cvector-generator says")
			}
			return p.print(b.String())
		},
	}
	addFlags(cmd, "Import", func(flags *pflag.FlagSet) {
		flags.StringVarP(&out, "out", "o", "", "steering `FILE` to write (required)")
		completeFiles(flags, "out", "gguf")
		choiceVar(flags, &numbering, "numbering", []string{"llama.cpp", "repeng", "easysteer", "cvector-generator", "jukofyork"}, "whose numbering of the layers the file has (default llama.cpp)")
	})
	return cmd
}

// imported is the report of an import.
type imported struct {
	File       string      `json:"file"`
	Numbering  string      `json:"numbering"`
	Arch       string      `json:"arch,omitempty"`
	Embd       int         `json:"n_embd"`
	Directions []direction `json:"directions"`
}
