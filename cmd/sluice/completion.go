package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// completions is what may follow a command: the names of commands below it, and flags.
type completions struct {
	path  string // "cluster remove"; "" for the program itself
	words []completionWord
}

type completionWord struct {
	text, help string
	takesValue bool // a flag with a value after it
}

// completionsOf walks all commands, so that a new one is completed without a word about it here.
func completionsOf(node *kong.Node, path string) (list []completions) {
	own := completions{path: path}
	for _, child := range node.Children {
		if child.Hidden || child.Type != kong.CommandNode {
			continue
		}
		own.words = append(own.words, completionWord{text: child.Name, help: child.Help})
		list = append(list, completionsOf(child, strings.TrimSpace(path+" "+child.Name))...)
	}
	flags := slices.Clone(node.Flags)
	if node.DefaultCmd != nil {
		flags = append(flags, node.DefaultCmd.Flags...)
	}
	for _, flag := range flags {
		if !flag.Hidden {
			own.words = append(own.words, completionWord{text: "--" + flag.Name, help: flag.Help, takesValue: !flag.IsBool()})
		}
	}
	if path != "" {
		own.words = append(own.words, completionWord{text: "--help", help: "Show what the command does."})
	}
	return append([]completions{own}, list...)
}

// Run prints a script that the shell reads.
func (c *completionCommand) Run(parser *kong.Kong, env environment) error {
	list := completionsOf(parser.Model.Node, "")
	switch c.Shell {
	case "bash":
		return writeBash(env.stdout, list)
	case "zsh":
		// zsh reads bash's functions, and knows its own files.
		if _, err := io.WriteString(env.stdout, "#compdef sluice\nautoload -U +X bashcompinit && bashcompinit\n"); err != nil {
			return err
		}
		return writeBash(env.stdout, list)
	}
	return writeFish(env.stdout, list)
}

// writeBash writes a function that finds the command among the words so far, and offers what may follow it; files where a
// flag's value or an argument may be one.
func writeBash(w io.Writer, list []completions) error {
	var b strings.Builder
	b.WriteString("# bash completion of sluice: source <(sluice completion bash)\n_sluice() {\n")
	b.WriteString("    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path='' word i\n")
	b.WriteString("    for ((i = 1; i < COMP_CWORD; i++)); do\n        word=${COMP_WORDS[i]}\n        case \"$path $word\" in\n")
	for _, c := range list[1:] {
		parent, name := "", c.path
		if at := strings.LastIndexByte(c.path, ' '); at >= 0 {
			parent, name = c.path[:at], c.path[at+1:]
		}
		fmt.Fprintf(&b, "            '%s %s') path='%s' ;;\n", parent, name, c.path)
	}
	b.WriteString("        esac\n    done\n    local words=''\n    case \"$path\" in\n")
	for _, c := range list {
		var words, valued []string
		for _, word := range c.words {
			words = append(words, word.text)
			if word.takesValue {
				valued = append(valued, word.text)
			}
		}
		fmt.Fprintf(&b, "        '%s') words='%s'\n", c.path, strings.Join(words, " "))
		if len(valued) > 0 {
			fmt.Fprintf(&b, "            case \"$prev\" in %s) COMPREPLY=($(compgen -f -- \"$cur\")); return ;; esac\n", strings.Join(valued, "|"))
		}
		b.WriteString("            ;;\n")
	}
	b.WriteString("    esac\n    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n")
	b.WriteString("    if [[ ${#COMPREPLY[@]} -eq 0 && $cur != -* ]]; then COMPREPLY=($(compgen -f -- \"$cur\")); fi\n}\n")
	b.WriteString("complete -o filenames -F _sluice sluice\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func writeFish(w io.Writer, list []completions) error {
	var b strings.Builder
	b.WriteString("# fish completion of sluice: sluice completion fish | source\n")
	b.WriteString("function __sluice_path\n    set -l path\n    for word in (commandline -opc)[2..-1]\n        switch \"$path $word\"\n")
	for _, c := range list[1:] {
		parent, name := "", c.path
		if at := strings.LastIndexByte(c.path, ' '); at >= 0 {
			parent, name = c.path[:at], c.path[at+1:]
		}
		fmt.Fprintf(&b, "            case '%s %s'\n                set path '%s'\n", parent, name, c.path)
	}
	b.WriteString("        end\n    end\n    test \"$path\" = \"$argv[1]\"\nend\n")
	quote := func(text string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(text) + "'"
	}
	for _, c := range list {
		for _, word := range c.words {
			condition := quote("__sluice_path " + quote(c.path))
			if flag, ok := strings.CutPrefix(word.text, "--"); ok {
				value := ""
				if word.takesValue {
					value = " -r"
				}
				fmt.Fprintf(&b, "complete -c sluice -n %s -l %s%s -d %s\n", condition, flag, value, quote(word.help))
			} else {
				fmt.Fprintf(&b, "complete -c sluice -n %s -f -a %s -d %s\n", condition, word.text, quote(word.help))
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
