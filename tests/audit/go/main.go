// Checks what leaves a node as evidence, with Go's own code for transparency logs: the packages
// that the go command verifies its checksum database with. Signatures, inclusion and consistency
// are theirs; ours is reading files.
//
//	logchecker log DIRECTORY KEY [KEPT]   an export, by the key pinned at the installation, and
//	                                      whether it continues the checkpoint kept in KEPT
//	logchecker proof PROOF RECORD KEY     one record's proof, by the newest key
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	said, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	fmt.Println(said)
}

func run(arguments []string) (string, error) {
	switch {
	case len(arguments) == 3 && arguments[0] == "log":
		return checkLog(arguments[1], arguments[2], "")
	case len(arguments) == 4 && arguments[0] == "log":
		return checkLog(arguments[1], arguments[2], arguments[3])
	case len(arguments) == 4 && arguments[0] == "proof":
		return checkProof(arguments[1], arguments[2], arguments[3])
	}
	return "", errors.New("usage: logchecker log DIRECTORY KEY [KEPT] | proof PROOF RECORD KEY")
}
