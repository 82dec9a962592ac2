# bash completion for netreeve
_netreeve() {
    local cur prev verb='' word i
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        # Behind -- stands somebody else's command.
        if [[ $word == -- ]]; then
            COMPREPLY=($(compgen -c -f -- "$cur"))
            return
        fi
        case $word in run | grant | doctor | ls | show | stats | set | add | remove | events | list | help) [[ $verb ]] || verb=$word ;; esac
    done

    case $prev in
        --netdev)
            compopt -o nospace
            COMPREPLY=($(compgen -W 'user,id= tap,id= bridge,id= af-xdp,id= stream,id= vde,id= hubport,id= vhost-user,id=' -- "$cur"))
            return ;;
        --device)
            compopt -o nospace
            COMPREPLY=($(compgen -W 'vhost-user,netdev= stream,netdev=' -- "$cur"))
            return ;;
        --object)
            compopt -o nospace
            COMPREPLY=($(compgen -W 'filter-dump,id= filter-mirror,id= filter-redirector,id= filter-buffer,id=' -- "$cur"))
            return ;;
        --sandbox) COMPREPLY=($(compgen -W 'full landlock seccomp off' -- "$cur")); return ;;
        --config | --helper | --helper-socket | --dataplane | --pid | --control) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --user) COMPREPLY=($(compgen -u -- "$cur")); return ;;
        --hotplug) COMPREPLY=($(compgen -W 'all tap bridge af-xdp stream dgram l2tpv3 socket vde vhost-user hubport' -- "$cur")); return ;;
        --format)
            [[ $verb == capture ]] && word='pcapng pcap pcap-ns' || word='table json openmetrics'
            COMPREPLY=($(compgen -W "$word" -- "$cur"))
            return ;;
        --queue) COMPREPLY=($(compgen -W 'all rx tx' -- "$cur")); return ;;
        --write | -w) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --maxlen) return ;;
        --busy-poll | --workers | --socket-mode | --ready-fd | --name) return ;;
    esac

    local ports='--netdev --config --helper-socket --helper' names=''
    case $verb in
        ls | show | stats | set | add | remove | events | capture)
            names=$(netreeve ls 2>/dev/null | awk 'NR > 1 { print $1 }') ;;
    esac
    case $verb in
        '') COMPREPLY=($(compgen -W 'run grant doctor ls show stats set add remove events capture list help --help --version' -- "$cur")) ;;
        run) COMPREPLY=($(compgen -W "$ports --device --object --sandbox --busy-poll --workers --lock-mac --socket-mode --user --dataplane
            --ready-fd --pid --daemonize --name --control --control-fd --hotplug --one-off --json --stats --help --" -- "$cur")) ;;
        grant) COMPREPLY=($(compgen -W "$ports --help --" -- "$cur")) ;;
        doctor) COMPREPLY=($(compgen -W "$ports --dataplane --help" -- "$cur")) ;;
        ls) COMPREPLY=($(compgen -W "$names --json --help" -- "$cur")) ;;
        show) COMPREPLY=($(compgen -W "$names --json --help" -- "$cur")) ;;
        stats) COMPREPLY=($(compgen -W "$names --format --json --help" -- "$cur")) ;;
        set) COMPREPLY=($(compgen -W "$names link=on link=off netdev= hostfwd+= hostfwd-= hostfwd= --json --help" -- "$cur")) ;;
        add) COMPREPLY=($(compgen -W "$names --netdev --device --json --help" -- "$cur")) ;;
        remove) COMPREPLY=($(compgen -W "$names --json --help" -- "$cur")) ;;
        events) COMPREPLY=($(compgen -W "$names --json --help" -- "$cur")) ;;
        capture) COMPREPLY=($(compgen -W "$names --write --maxlen --queue --format --json --help" -- "$cur")) ;;
        list) COMPREPLY=($(compgen -W '--json --help' -- "$cur")) ;;
        help) COMPREPLY=($(compgen -W 'run grant doctor ls show stats set add remove events capture list' -- "$cur")) ;;
    esac
}
complete -F _netreeve netreeve
